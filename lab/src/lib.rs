//! A LAN, a Kubernetes control plane and nodes as network namespaces of one Linux machine.

pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod kit;
pub mod kubelet;
pub mod lan;
pub mod management;
pub mod netns;
pub mod node;
pub mod pki;
pub mod preflight;
pub mod process;
pub mod requests;
pub mod runtime;
pub mod sandbox;
pub mod scheduler;
pub mod screen;
pub mod shell;
pub mod virtual_ip;
pub mod workload;
