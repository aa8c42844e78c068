//! A Service in front of backends, as a cluster is told of it.

use std::net::IpAddr;

use serde_json::{Value, json};

/// The port of the Service and of its backends, UDP and TCP.
pub const PORT: u16 = 9100;

/// A Service of type LoadBalancer that asks l2lb for that address, and its endpoints: a [`super::Backend`] at each address, said to be
/// on that node. Both are items of one `List`.
pub fn service(name: &str, address: IpAddr, policy: &str, endpoints: &[(IpAddr, &str)]) -> Value {
    let family = |address: &IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT});
    let ports = [port("UDP"), port("TCP")];
    let conditions = json!({"ready": true, "serving": true, "terminating": false});
    let endpoints: Vec<Value> = endpoints
        .iter()
        .filter(|(backend, _)| family(backend) == family(&address))
        .map(|(backend, node)| json!({"addresses": [backend], "nodeName": node, "conditions": conditions}))
        .collect();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "annotations": {"l2lb.io/addresses": address}},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": policy, "ipFamilies": [family(&address)],
            "ports": ports,
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "addressType": family(&address),
        "ports": ports,
        "endpoints": endpoints,
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [service, slice]})
}
