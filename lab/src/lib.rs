//! A LAN, a Kubernetes control plane and nodes as network namespaces of one Linux machine.

pub mod lan;
pub mod netns;
pub mod sandbox;
