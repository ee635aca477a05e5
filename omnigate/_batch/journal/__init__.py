"""The outcomes of a batch on disk, which a later run resumes from."""
