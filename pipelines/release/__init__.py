"""From a registered version to a served one: promote, package, verify."""
