"""Writers: one module for each form an audit is reported in."""
