"""The commands, one file each; options stop here."""
