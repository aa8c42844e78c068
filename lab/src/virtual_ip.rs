//! What l2lb says of an address, read as a user of its API reads it.

use anyhow::{Context as _, Result};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};

use crate::cluster::Cluster;
use crate::runtime;

/// Who claims to answer for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The node.
    pub node: String,
    /// Its interface.
    pub interface: String,
    /// That interface's MAC address.
    pub mac: String,
}

/// The owner of the VirtualIP of this name, or none. Where an old claim has not been taken away yet, the one that answers
/// the latest placement counts.
///
/// # Errors
/// When the object cannot be read.
pub fn owner(cluster: &Cluster, name: &str) -> Result<Option<Owner>> {
    Ok(read(cluster, name)?.and_then(|data| latest_owner(&data)))
}

/// The whole object of this name, or none.
///
/// # Errors
/// When it cannot be read.
pub fn read(cluster: &Cluster, name: &str) -> Result<Option<serde_json::Value>> {
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("l2lb.io", "v1alpha1", "VirtualIP"), "virtualips");
    let api: Api<DynamicObject> = Api::all_with(cluster.client().clone(), &resource);
    let object = runtime::block_on(async { api.get_opt(name).await.with_context(|| format!("VirtualIP {name}")) })?;
    Ok(object.map(|object| object.data))
}

fn latest_owner(data: &serde_json::Value) -> Option<Owner> {
    let claims = data["status"]["claims"].as_array()?;
    let owners = claims.iter().filter(|claim| claim["state"] == "Owner");
    let claim = owners.max_by_key(|claim| claim["placement"].as_i64())?;
    let text = |field: &str| claim[field].as_str().unwrap_or_default().to_owned();
    Some(Owner { node: text("node"), interface: text("interface"), mac: text("mac") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_latest_placement_counts() {
        let claim = |node: &str, state: &str, placement: i64| json!({"node": node, "interface": "eth0", "mac": "02:00:00:00:01:01", "state": state, "placement": placement});
        let data = json!({"status": {"claims": [claim("new", "Owner", 3), claim("old", "Owner", 2), claim("x", "Probing", 4)]}});
        assert_eq!(latest_owner(&data).unwrap().node, "new");
        assert_eq!(latest_owner(&json!({"status": {}})), None);
        assert_eq!(latest_owner(&json!({"status": {"claims": [claim("a", "Probing", 1)]}})), None);
    }
}
