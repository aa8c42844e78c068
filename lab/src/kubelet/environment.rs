//! The environment of a container: the API server's address, plain values, and what the Pod says about itself. Pure.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};
use kube::ResourceExt as _;
use thiserror::Error;

use crate::control_plane::KUBERNETES_SERVICE;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A variable that the lab cannot resolve. The Pod's author can change it; nothing has been started.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EnvironmentError {
    /// A source other than a plain value or a field.
    #[error("variable {0}: the lab knows plain values and fieldRef only")]
    Source(String),
    /// A field that the downward API does not have.
    #[error("variable {variable}: there is no field {field}")]
    Field {
        /// The variable's name.
        variable: String,
        /// The fieldPath.
        field: String,
    },
    /// `envFrom`.
    #[error("envFrom: the lab does not read ConfigMaps or Secrets into the environment")]
    From,
}

/// What a kubelet knows of a Pod besides its object.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The Pod.
    pub pod: &'a Pod,
    /// The node's name.
    pub node: &'a str,
    /// The node's address.
    pub host_ip: Ipv4Addr,
    /// The Pod's address.
    pub pod_ip: Ipv4Addr,
}

/// All variables of a container, in order; later ones may use earlier ones as `$(NAME)`.
///
/// # Errors
/// The first variable that cannot be resolved.
pub fn resolve(container: &Container, facts: Facts<'_>) -> Result<Vec<(String, String)>, EnvironmentError> {
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        return Err(EnvironmentError::From);
    }
    let host_network = facts.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let hostname = if host_network { facts.node.to_owned() } else { facts.pod.name_any() };
    let mut variables: Vec<(String, String)> = [
        ("PATH", PATH),
        ("HOSTNAME", &hostname),
        ("KUBERNETES_SERVICE_HOST", KUBERNETES_SERVICE),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for variable in container.env.iter().flatten() {
        let value = value_of(variable, &variables, facts)?;
        variables.retain(|(name, _)| *name != variable.name);
        variables.push((variable.name.clone(), value));
    }
    Ok(variables)
}

/// Replaces `$(NAME)` by the variable's value; `$$(` stands for itself, and an unknown name stays as it is.
pub fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')')).map(|(name, _)| name);
        match name.and_then(|name| variables.iter().find(|(known, _)| known == name)) {
            Some((name, value)) => {
                out += value;
                rest = &rest[name.len() + 3..];
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

fn value_of(variable: &EnvVar, variables: &[(String, String)], facts: Facts<'_>) -> Result<String, EnvironmentError> {
    let Some(source) = &variable.value_from else {
        return Ok(expand(variable.value.as_deref().unwrap_or_default(), variables));
    };
    let Some(field) = &source.field_ref else {
        return Err(EnvironmentError::Source(variable.name.clone()));
    };
    field_value(&field.field_path, facts)
        .ok_or_else(|| EnvironmentError::Field { variable: variable.name.clone(), field: field.field_path.clone() })
}

/// The value of a downward API field, or `None` if there is no such field.
pub fn field_value(path: &str, facts: Facts<'_>) -> Option<String> {
    let pod = facts.pod;
    let spec = pod.spec.as_ref();
    Some(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace()?,
        "metadata.uid" => pod.uid()?,
        "spec.nodeName" => facts.node.to_owned(),
        "spec.serviceAccountName" => spec?.service_account_name.clone()?,
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_string(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.to_string(),
        _ => {
            let quoted = |prefix| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
            if let Some(label) = quoted("metadata.labels") {
                pod.labels().get(label).cloned().unwrap_or_default()
            } else {
                pod.annotations().get(quoted("metadata.annotations")?).cloned().unwrap_or_default()
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resolved(env: serde_json::Value) -> Result<Vec<(String, String)>, EnvironmentError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "speaker-x", "namespace": "l2lb-system", "labels": {"app": "speaker"}},
            "spec": {"hostNetwork": true, "containers": [{"name": "speaker", "env": env}]},
        }))
        .unwrap();
        let facts =
            Facts { pod: &pod, node: "node1", host_ip: [10, 100, 0, 11].into(), pod_ip: [10, 244, 1, 2].into() };
        resolve(&pod.spec.as_ref().unwrap().containers[0], facts)
    }

    fn value(env: serde_json::Value, name: &str) -> String {
        resolved(env).unwrap().into_iter().find(|(known, _)| known == name).unwrap().1
    }

    #[test]
    fn fields_are_taken_from_the_pod_and_the_node() {
        for (field, expected) in [
            ("spec.nodeName", "node1"),
            ("metadata.namespace", "l2lb-system"),
            ("metadata.name", "speaker-x"),
            ("status.podIP", "10.244.1.2"),
            ("status.hostIP", "10.100.0.11"),
            ("metadata.labels['app']", "speaker"),
        ] {
            let env = json!([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": field}}}]);
            assert_eq!(value(env, "X"), expected, "{field}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_is_named() {
        let env = json!([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.colour"}}}]);
        assert_eq!(
            resolved(env).unwrap_err(),
            EnvironmentError::Field { variable: "X".into(), field: "spec.colour".into() }
        );
        let env = json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
        assert_eq!(resolved(env).unwrap_err(), EnvironmentError::Source("X".into()));
    }

    #[test]
    fn earlier_variables_are_expanded() {
        let env = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(NO)-$$(A)-$"}]);
        assert_eq!(value(env, "B"), "1-$(NO)-$(A)-$");
    }

    #[test]
    fn the_api_server_is_named() {
        assert_eq!(value(json!([]), "KUBERNETES_SERVICE_HOST"), "10.96.0.1");
        assert_eq!(value(json!([]), "HOSTNAME"), "node1");
    }
}
