"""What all commands share: options, settings, profiles, output, and how errors are shown."""
