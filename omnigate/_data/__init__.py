"""People's data as rows: files, open files, frames and tables, and prompts made from rows."""
