"""Systems behind the interfaces of other libraries."""
