"""What is asked of the methods beside the comparison: lambda, degeneracy, loss surfaces, distributions."""
