"""What the README's figures come from. A package, since opacus installs one of this name."""
