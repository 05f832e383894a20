"""The tests are laid out as the package is: a flat file tests the flat module of its name, a folder
the folder of its name. project/, weights/ and bench/ test what is around the package, goldens/ and
fuzz/ compare it with Hugging Face and with hostile files; support/ is what tests share."""
