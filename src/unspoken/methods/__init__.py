"""One package a method. None imports another one; what several share lies beside them in this folder."""
