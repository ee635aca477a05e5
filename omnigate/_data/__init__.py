"""People's data as rows: read from files, frames and tables, made into prompts, and written again."""
