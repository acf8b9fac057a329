"""What people look at: pages and figures made from a result store. Reads `suite.store`, draws `theory`; no torch."""
