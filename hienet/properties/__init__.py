"""From a potential to properties of materials: each a function, and a command of `hienet`."""
