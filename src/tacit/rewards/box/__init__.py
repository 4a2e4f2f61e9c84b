"""What runs inside the sandbox: guards, the process that forks a program and its checker, and the talk between these two. Imports no torch."""
