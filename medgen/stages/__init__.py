"""What each stage of an experiment does. Values are unpacked from the config here and nowhere below."""
