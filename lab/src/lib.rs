//! A LAN, a Kubernetes control plane and nodes as network namespaces of one Linux machine.
//!
//! Everything that l2lb talks to is real: etcd, kube-apiserver, kube-controller-manager, kube-proxy with iptables, Linux
//! network stacks, frames. The lab stands in for the scheduler, for kubelet, and for images.
//!
//! | modules | what they hold |
//! |---|---|
//! | [`sandbox`], [`netns`], [`process`], [`runtime`] | the walls around it all, network namespaces, programs, the tokio runtime |
//! | [`lan`] | the LAN: a bridge, or a switch in user space with a gateway that stores ports |
//! | [`kit`], [`preflight`] | the Kubernetes programs, and what the machine has to have; [`kit::enter`] is the first call in `main` |
//! | [`control_plane`], [`pki`], [`management`] | the API server and its friends, their keys, the network they are on |
//! | [`node`], [`kubelet`], [`scheduler`], [`workload`] | nodes, and Pods as processes with the rights, tokens and probes they ask for |
//! | [`cluster`] | all of it together |
//! | [`vm`] | a virtual machine, for what this machine's kernel lacks |
//! | [`fake_api`] | a small API server for speakers alone |
//! | [`traffic`], [`stalls`] | a client's traffic, for measurements; whether the machine had time for them |
//! | [`mod@bench`] | how long a failover and a move are felt by a client, for l2lb and its peers |
//! | [`demo`], [`shell`], [`screen`], [`requests`], [`virtual_ip`] | what a person sees of it |

mod access;
pub mod bench;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod fake_api;
pub mod families;
pub mod kit;
pub mod kubelet;
pub mod lan;
pub mod management;
pub mod netns;
pub mod node;
mod pace;
pub mod pki;
pub mod preflight;
pub mod process;
pub mod requests;
pub mod runtime;
pub mod sandbox;
pub mod scheduler;
pub mod screen;
pub mod shell;
pub mod stalls;
pub mod traffic;
pub mod virtual_ip;
pub mod vm;
pub mod workload;
