"""The product that formats with codes for eight weights share: look vectors up where matrix units want them."""
