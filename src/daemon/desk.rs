//! The desk of the loop: what operators ask is answered here, between two turns.

use std::time::Duration;

use failover::{Command, Input, Time};

use super::{
    reload,
    request::Request,
    settings,
    status::{self, Surroundings},
    turn_loop::{Device, Parts, TurnLoop},
};
use crate::{
    admin::document,
    config::Config,
    planes::{netlink::NetlinkPlane, store::StorePlane, udp::Udp},
};

/// For goodbyes to leave by both paths.
const GOODBYE_TIME: Duration = Duration::from_millis(300);

impl TurnLoop {
    pub(super) fn read_requests(&mut self, now: Time) {
        let mut requests = std::mem::take(&mut self.boxes.requests);
        self.parts.requests.take(&mut requests);
        for request in requests.drain(..) {
            match request {
                // Whoever asked may have gone; that is no error, here and below.
                Request::Status { reply } => drop(reply.send(Box::new(self.document(now)))),
                Request::Ping { peer, via, reply } => {
                    if let Some(id) = self.asks.ping(now, reply) {
                        self.turn(now, Input::Command(Command::Ping { peer, id, via }));
                    }
                }
                Request::Drill { peer, cut, length, force, reply } => {
                    self.asks.drill(peer, length, reply);
                    let command = Command::Drill { peer, cut, length, force };
                    self.turn(now, Input::Command(command));
                }
                Request::Reload { config, reply } => {
                    drop(reply.send(self.reload(now, *config)));
                }
                Request::Replicate { to, reply } => self.parts.replicas.round(to, reply),
                Request::Stop => {
                    if self.stop_at.is_none() {
                        self.turn(now, Input::Command(Command::Goodbye));
                        self.stop_at = Some(now + GOODBYE_TIME);
                    }
                }
            }
        }
        self.boxes.requests = requests;
    }

    /// Keeps the interface's MTU at what one datagram carries, unless it was set by hand.
    pub(super) fn fit_mtu(&mut self) {
        let Parts { config, planes, mtu, .. } = &mut self.parts;
        let Some(interface) = config.interface.as_ref().filter(|i| i.mtu.is_none()) else { return };
        let wanted = settings::interface_mtu(config, planes.udp.as_ref().and_then(Udp::size_min));
        if wanted == *mtu {
            return;
        }
        if let (Device::Tun(_), Some(netlink)) = (&planes.device, &planes.netlink) {
            tracing::info!(
                interface = interface.name,
                from = *mtu,
                to = wanted,
                "MTU follows the path"
            );
            netlink.set_mtu(&interface.name, wanted);
        }
        *mtu = wanted;
    }

    fn reload(&mut self, now: Time, config: Config) -> Result<Vec<String>, String> {
        let lines = reload::diff(&self.parts.config, &config)?;
        let options = settings::options(&config, self.parts.plan.as_ref(), &self.parts.identity);
        self.parts.config = config;
        self.parts.replicas.set(&self.parts.config.replicate);
        self.set_peers();
        self.measure_at = now;
        self.turn(now, Input::Command(Command::Configure(Box::new(options))));
        Ok(lines)
    }

    fn set_peers(&mut self) {
        let Parts { config, planes, counter, .. } = &mut self.parts;
        counter.set_peers(config.peers.iter().map(|p| (p.id, p.name.clone())));
        if let Some(udp) = &mut planes.udp {
            udp.set_peers(settings::endpoints(config));
        }
        if let Some(tcp) = &mut planes.tcp {
            tcp.set_peers(config.peers.iter().map(|p| (p.id, p.endpoints.clone())));
        }
        if let Some(pipes) = &mut planes.pipes {
            pipes.set_peers(config.peers.iter().map(|p| (p.id, p.endpoints.clone())));
        }
        if let Some(netlink) = &planes.netlink {
            netlink.set_peers(settings::watched(config));
        }
    }

    fn document(&self, now: Time) -> document::Document {
        let Parts { config, planes, .. } = &self.parts;
        let mut warnings = Vec::new();
        if config.plaintext {
            warnings.push("security.plaintext: FRAMES TRAVEL UNENCRYPTED".into());
        }
        if planes.beat.as_ref().is_some_and(|beat| !beat.is_alive()) {
            warnings.push("the heartbeat thread has ended: restart the daemon".into());
        }
        warnings.extend(self.parts.warnings.iter().cloned());
        warnings.extend(self.device_trouble.clone());
        warnings.extend(planes.netlink.as_ref().and_then(NetlinkPlane::trouble));
        if self.parts.hooks.dropped() > 0 {
            warnings.push(format!("{} events were not told to hooks", self.parts.hooks.dropped()));
        }
        let interface =
            config.interface.as_ref().filter(|_| !matches!(planes.device, Device::None));
        let around = Surroundings {
            node: document::Node {
                id: config.node.id.get(),
                name: config.node.name.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                uptime_s: now.since(self.started).as_secs_f64(),
                realtime: self.parts.identity.realtime,
            },
            interface: interface.map(|i| document::Interface {
                name: i.name.clone(),
                address: format!("{}/{}", i.address, i.prefix),
                mtu: self.parts.mtu,
            }),
            replicas: self.parts.replicas.status(),
            warnings,
        };
        let volumes = planes.store.iter().flat_map(StorePlane::status);
        status::document(&self.parts.node, now, around, volumes)
    }
}
