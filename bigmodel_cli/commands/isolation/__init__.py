"""Commands in a child process, since native code may take its process down."""
