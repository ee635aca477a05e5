"""The outcomes of a batch on disk, from which a later run resumes."""
