//! Readiness and liveness probes: a request that is really made, from the node's network namespace, as a kubelet does.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::netns::Netns;

/// What is asked of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// An HTTP request; any status from 200 to 399 is a yes.
    Http {
        /// Where to.
        to: SocketAddr,
        /// The path.
        path: String,
    },
    /// A connection; being accepted is a yes.
    Tcp(SocketAddr),
}

/// A probe with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is asked.
    pub question: Question,
    /// How long to wait before the first one.
    pub delay: Duration,
    /// How long between two.
    pub period: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// So many refusals in a row count as one.
    pub failures: u32,
}

impl Plan {
    /// Reads a Pod's probe. `address` is the Pod's.
    ///
    /// # Errors
    /// With a sentence, for kinds of probe that the lab does not make.
    pub fn of(probe: &Probe, container: &Container, address: IpAddr) -> Result<Self, String> {
        let question = if let Some(http) = &probe.http_get {
            if http.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
                return Err("the lab makes no HTTPS probes".to_owned());
            }
            let to = socket_address(http.host.as_deref(), &http.port, container, address)?;
            Question::Http { to, path: http.path.clone().unwrap_or_else(|| "/".to_owned()) }
        } else if let Some(tcp) = &probe.tcp_socket {
            Question::Tcp(socket_address(tcp.host.as_deref(), &tcp.port, container, address)?)
        } else {
            return Err("the lab makes httpGet and tcpSocket probes only".to_owned());
        };
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
        };
        Ok(Self {
            question,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            failures: probe.failure_threshold.and_then(|value| u32::try_from(value).ok()).unwrap_or(3).max(1),
        })
    }

    /// Asks once, and blocks until there is an answer or the timeout.
    ///
    /// # Errors
    /// What was wrong with the answer.
    pub fn ask(&self, netns: &Netns) -> Result<(), String> {
        netns.run(|| self.ask_from_here()).unwrap_or_else(|error| Err(format!("{error:#}")))
    }

    fn ask_from_here(&self) -> Result<(), String> {
        let (Question::Http { to, .. } | Question::Tcp(to)) = &self.question;
        let mut stream = TcpStream::connect_timeout(to, self.timeout).map_err(|error| format!("{to}: {error}"))?;
        let Question::Http { path, .. } = &self.question else { return Ok(()) };
        let exchange = || -> std::io::Result<String> {
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: kube-probe/l2lb-lab\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes())?;
            let mut answer = [0; 512];
            let mut length = 0;
            while length < answer.len() && !answer[..length].contains(&b'\n') {
                match stream.read(&mut answer[length..])? {
                    0 => break,
                    more => length += more,
                }
            }
            Ok(String::from_utf8_lossy(&answer[..length]).lines().next().unwrap_or_default().to_owned())
        };
        let mut exchange = exchange;
        verdict(&exchange().map_err(|error| format!("{to}{path}: {error}"))?)
    }
}

/// What the first line of an HTTP answer means.
fn verdict(status_line: &str) -> Result<(), String> {
    let mut words = status_line.split(' ');
    let version = words.next().unwrap_or_default();
    match words.next().and_then(|status| status.parse::<u16>().ok()) {
        Some(200..400) if version.starts_with("HTTP/1.") => Ok(()),
        _ => Err(format!("the answer was '{status_line}'")),
    }
}

fn socket_address(
    host: Option<&str>,
    port: &IntOrString,
    container: &Container,
    address: IpAddr,
) -> Result<SocketAddr, String> {
    let address = match host.filter(|host| !host.is_empty()) {
        Some("localhost") => IpAddr::from([127, 0, 0, 1]),
        Some(host) => host.parse().map_err(|_| format!("the probe's host {host} is not an address"))?,
        None => address,
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok());
    Ok(SocketAddr::new(address, number.ok_or_else(|| format!("the container has no port {port:?}"))?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(probe: serde_json::Value) -> Result<Plan, String> {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "health", "containerPort": 7472}]})).unwrap();
        Plan::of(&serde_json::from_value(probe).unwrap(), &container, [10, 244, 1, 2].into())
    }

    #[test]
    fn host_and_port_name_are_honoured() {
        let by_name = plan(json!({"httpGet": {"path": "/readyz", "port": "health"}})).unwrap();
        let to = "10.244.1.2:7472".parse().unwrap();
        assert_eq!(by_name.question, Question::Http { to, path: "/readyz".to_owned() });
        let by_host = plan(json!({"tcpSocket": {"host": "127.0.0.1", "port": 7473}})).unwrap();
        assert_eq!(by_host.question, Question::Tcp("127.0.0.1:7473".parse().unwrap()));
        assert_eq!(
            (by_name.period, by_name.timeout, by_name.failures),
            (Duration::from_secs(10), Duration::from_secs(1), 3)
        );
    }

    #[test]
    fn what_is_not_made_is_said() {
        assert!(plan(json!({"exec": {"command": ["true"]}})).unwrap_err().contains("httpGet"));
        assert!(plan(json!({"httpGet": {"port": "nope"}})).unwrap_err().contains("nope"));
    }

    #[test]
    fn only_good_answers_are_a_yes() {
        assert!(verdict("HTTP/1.1 200 OK").is_ok());
        assert!(verdict("HTTP/1.1 302 Found").is_ok());
        for bad in ["HTTP/1.1 503 Service Unavailable", "", "200", "SSH-2.0-x 200", "HTTP/1.1 abc"] {
            assert!(verdict(bad).is_err(), "{bad}");
        }
    }
}
