//! Many histories of a LAN with speakers, hosts, a gateway and a controller: everything that can happen to them, drawn from a
//! seed, in virtual time. A failure names its seed and prints the shortest history that shows it.
//!
//! The speakers are real (`Station` and the receive path's decisions: all that a speaker decides); the LAN, the hosts, the API server and
//! the controller are models. `L2LB_SIMULATION=20` plays twenty times as many histories.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cases;
mod controller;
mod explore;
mod histories;
mod history;
mod hosts;
mod judge;
mod node;
mod random;
mod regressions;
mod rules;
mod world;
