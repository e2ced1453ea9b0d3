"""The Hessian of a restricted Boltzmann machine of digits, exact and from Gibbs samples: numbers and figures."""
