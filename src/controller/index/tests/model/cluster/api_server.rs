//! The API server: it carries out what the controller writes.

use super::*;

impl Cluster {
    pub fn write(&mut self, change: &Change) -> Outcome {
        match change {
            Change::CreateVirtualIP { spec } => {
                let name = api::virtual_ip_name(spec.address.parse().unwrap());
                if self.vips.contains_key(&name) {
                    return Outcome::Conflict;
                }
                let mut vip = VirtualIP::new(&name, spec.clone());
                vip.metadata.uid = Some(format!("uid-vip-{}", self.next_version()));
                vip.metadata.labels = Some(virtual_ip_labels(spec));
                Outcome::VirtualIP(self.put_vip(vip))
            }
            Change::UpdateVirtualIP { resource_version, spec, .. } => {
                let name = api::virtual_ip_name(spec.address.parse().unwrap());
                let Some(mut vip) = self.same_vip(&name, resource_version) else { return Outcome::Conflict };
                vip.spec = spec.clone();
                vip.metadata.labels = Some(virtual_ip_labels(spec));
                Outcome::VirtualIP(self.put_vip(vip))
            }
            Change::RemoveClaim { address, resource_version, index, node } => {
                let name = api::virtual_ip_name(*address);
                let Some(mut vip) = self.same_vip(&name, resource_version) else { return Outcome::Conflict };
                let gone = vip.status.as_mut().unwrap().claims.remove(*index);
                assert_eq!(gone.node, *node);
                Outcome::VirtualIP(self.put_vip(vip))
            }
            Change::DeleteVirtualIP { address, resource_version, .. } => {
                let name = api::virtual_ip_name(*address);
                if self.same_vip(&name, resource_version).is_none() {
                    return Outcome::Conflict;
                }
                self.remove_vip(&name);
                Outcome::Done
            }
            Change::ServiceStatus(status) => self.write_status(status),
            Change::PoolStatus { name, status } => {
                if !self.truth.pools.contains_key(name) {
                    return Outcome::Conflict;
                }
                self.pool_status.insert(name.clone(), json!(status));
                self.pool_changed(name);
                Outcome::Done
            }
            Change::SpeakerOwner { .. } | Change::LeaseOwner { .. } | Change::ServiceEvent { .. } => Outcome::Done,
        }
    }

    pub(super) fn write_status(&mut self, status: &ServiceStatus) -> Outcome {
        let key = format!("{}/{}", status.namespace, status.name);
        let Some(shown) = self.shown.get_mut(&key) else { return Outcome::Conflict };
        if shown.version.to_string() != status.resource_version {
            return Outcome::Conflict;
        }
        shown.managed = !status.conditions.is_empty();
        shown.status = applied(status);
        self.service_changed(&key);
        Outcome::Service(self.service_view(&key))
    }

    pub(super) fn same_vip(&self, name: &str, version: &str) -> Option<VirtualIP> {
        self.vips.get(name).filter(|vip| vip.metadata.resource_version.as_deref() == Some(version)).cloned()
    }
}
