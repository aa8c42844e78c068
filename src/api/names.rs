//! Names of labels, annotations and field managers: the strings that other programs and people see.

/// The API group of all kinds.
pub const GROUP: &str = "l2lb.io";

/// Which pool a Service asks for: `l2lb.io/pool: lan`.
pub const ANNOTATION_POOL: &str = "l2lb.io/pool";
/// Which addresses a Service asks for, comma separated: `l2lb.io/addresses: 192.0.2.70`.
pub const ANNOTATION_ADDRESSES: &str = "l2lb.io/addresses";
/// Services with the same key may share one address when their ports do not collide.
pub const ANNOTATION_SHARING_KEY: &str = "l2lb.io/sharing-key";
/// Prefixes under which MetalLB's annotations are understood (read only).
pub const METALLB_PREFIXES: [&str; 2] = ["metallb.io", "metallb.universe.tf"];

/// The well-known Node label that keeps a node from announcing load balancer addresses.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The annotation by which an administrator asks for a Node's addresses to be moved away: any value but `false`.
pub const DRAIN_ANNOTATION: &str = "l2lb.io/drain";
/// The well-known taint by which an administrator says that a Node is off.
pub const OUT_OF_SERVICE_TAINT: &str = "node.kubernetes.io/out-of-service";
/// The label on all objects that belong to an installation.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";

/// Field manager of everything the controller applies.
pub const CONTROLLER_FIELD_MANAGER: &str = "l2lb-controller";
/// Field managers of the speakers start with this; the node's name follows.
pub const SPEAKER_FIELD_MANAGER_PREFIX: &str = "l2lb-speaker-";

/// A label's name part holds at most 63 characters, a field manager 128.
const LABEL_NAME_MAX: usize = 63;
const FIELD_MANAGER_MAX: usize = 128;

/// The label on a VirtualIP by which the speaker of `node` finds what it is assigned: `node.l2lb.io/<node>`, with the
/// role in lower case as its value. Node names longer than a label name allows are cut and end in a hash.
pub fn node_label(node: &str) -> String {
    format!("node.{GROUP}/{}", shortened(node, LABEL_NAME_MAX))
}

/// The field manager under which the speaker of `node` applies its claims and its Speaker object.
pub fn speaker_field_manager(node: &str) -> String {
    shortened(&format!("{SPEAKER_FIELD_MANAGER_PREFIX}{node}"), FIELD_MANAGER_MAX)
}

/// The `coordination.k8s.io` Lease that says that the speaker of `node` lives.
pub fn speaker_lease_name(node: &str) -> String {
    format!("l2lb-speaker-{node}")
}

fn shortened(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let hash = format!("-{:016x}", fnv1a(name));
    let head: String = name.chars().take(max - hash.len()).collect();
    format!("{}{hash}", head.trim_end_matches(['-', '.', '_']))
}

/// FNV-1a: the name has to be the same in every release and on every node, which the standard hasher does not promise.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_node_names_fit_a_label_and_stay_apart() {
        let first = "a".repeat(70) + "1";
        let second = "a".repeat(70) + "2";
        let (first, second) = (node_label(&first), node_label(&second));
        assert_ne!(first, second);
        for label in [first, second] {
            let name = label.strip_prefix("node.l2lb.io/").unwrap();
            assert!(name.len() <= 63, "{name}");
        }
    }

    #[test]
    fn short_node_names_are_kept() {
        assert_eq!(node_label("worker-1"), "node.l2lb.io/worker-1");
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
