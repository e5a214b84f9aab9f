"""Images, flow files, colours and metrics; procedural scenes; the published data sets and submissions to them."""
