"""The Hessian of a restricted Boltzmann machine on digits, exact and from Gibbs samples: numbers and figures."""
