//! l2lb, a layer-2 LoadBalancer for Kubernetes.
//!
//! ```text
//!             Service, EndpointSlice, Node, IPPool            VirtualIP (only those of this node)
//!  API server ------------------> controller --> API server -----------------> speaker on node A --+
//!             <------------------               ^                              speaker on node B --+--> the LAN
//!    Service status, conditions                 +--- claims, NIC inventory --- speaker on node C --+
//! ```
//!
//! | module | what it holds | may use |
//! |---|---|---|
//! | [`api`] | the vocabulary: kinds, conditions, names | nothing of the crate |
//! | [`ipam`] | which address: ranges, pools, allocator (pure) | small |
//! | [`controller`] | which Service, which node: index, placement (pure), and the loop that carries it out (edge) | api, ipam, retry, small, telemetry, watching |
//! | [`speaker`] | who answers: frames, owner protocol (pure), and NICs, sockets, reports (edge) | api, retry, telemetry, watching |
//! | [`telemetry`] | logs, health, metrics (edge) | nothing of the crate |
//! | [`retry`] | how long to wait before the API server is asked again | nothing of the crate |
//! | [`watching`] | watches that cannot fall deaf (edge) | retry |
//! | [`small`] | maps and sets of a few entries (pure) | nothing of the crate |
//!
//! Pure modules take `now` and configuration as arguments and return what is to be done; they have no clock, client, lock,
//! task or socket. Edges feed them and carry out what they say. Edges may use pure modules, never the other way round;
//! controller and speaker never use each other. `tests/layering.rs` reads the sources and fails on a breach.

pub mod api;
pub mod controller;
pub mod ipam;
pub mod retry;
pub mod small;
pub mod speaker;
pub mod telemetry;
pub mod watching;
