"""The report's plain texts, one module each, named like its file. All read one `kdfast.report.schema.Analysis`."""
