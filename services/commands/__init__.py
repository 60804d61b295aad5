"""The commands of the program, one file each; `services.cli` names them."""
