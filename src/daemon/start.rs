//! Puts a node together, in an order that refuses early and touches shared things late: words and
//! rights first, then our own sockets and device, then the volumes that others use too.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
};

use failover::{Node, wire::FIRST_BYTE_BEAT};

use super::{
    Attachment, Daemon, REQUESTS_MAX, RequestQueue, RequestSender, StartError,
    epoch::StateDir,
    events::RecentEvents,
    hooks::Hooks,
    replicas::Replicas,
    settings::{self, Identity},
    turn_loop::{BELL, Device, Hands, PIPE_TOKENS, Parts, Planes, TCP_TOKENS, TurnLoop},
};
use crate::{
    config::{Config, InterfaceConfig, key},
    planes::{
        beat::{BeatPlane, BeatSocket},
        netlink::{InterfaceSetup, NetlinkPlane},
        pipe::Pipes,
        queue::{Bell, Queue},
        store::{StorePlan, StorePlane, StoreSettings},
        store_queue::StoreQueue,
        tcp::{self, Tcp},
        tun::Tun,
        udp::{self, Udp},
    },
    sessions::hub::{Counter, Hub},
    sys::{clock, reuseport},
};

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

pub(super) fn start(config: Config, attachment: Attachment) -> Result<Daemon, StartError> {
    let private_key = key::read_private(&config.node.key_file)
        .map_err(|e| StartError::Key { message: e.message, hint: e.hint })?;
    let state = StateDir::lock(&config.node.state_dir)?;
    let epoch = state.next_epoch()?;

    let poll = mio::Poll::new().map_err(system("the event loop"))?;
    let bell = match &attachment {
        Attachment::Channel(device) => device.bell(),
        Attachment::Tun | Attachment::None => Bell::default(),
    };
    bell.hang(poll.registry(), BELL).map_err(system("the event loop"))?;

    let progress = Arc::new(AtomicU64::new(clock::now().micros()));
    let mut warnings = Vec::new();
    let mut network = match &config.network {
        Some(network) => Some(open_network(&config, network.listen, &poll, &mut warnings)?),
        None => None,
    };
    let listen = network.as_ref().map(|n| n.listen);

    let netlink = match NetlinkPlane::start(bell.clone()) {
        Ok(netlink) => Some(netlink),
        Err(error) => {
            warnings.push(format!("no link events: {error}"));
            None
        }
    };
    let mtu = settings::interface_mtu(&config, network.as_ref().and_then(|n| n.udp.size_min()));
    let device = open_device(&config, attachment, netlink.as_ref(), mtu)?;

    let store_queue = Arc::new(StoreQueue::new(bell.clone()));
    let plan = config
        .storage
        .as_ref()
        .map(|storage| StorePlan::new(&storage.send, &storage.receive, config.peers.len()));
    let store = match (&config.storage, &plan) {
        (Some(storage), Some(plan)) => {
            let settings = StoreSettings {
                node: config.node.id,
                epoch,
                flush_bytes: storage.flush_bytes,
                flush_delay: storage.flush_delay,
                single_host: storage.single_host,
                // Until the core says otherwise: quick, so that the path is known good soon.
                beat_interval: failover::Timing::default().storage_beat_active,
            };
            let attached = StorePlane::attach(plan, settings, Arc::clone(&store_queue));
            Some(attached.map_err(|r| StartError::Volume { path: r.path, error: r.error })?)
        }
        _ => None,
    };

    let single_host = config.storage.as_ref().is_some_and(|storage| storage.single_host);
    let replicas = Replicas::start(&config.replicate, single_host)?;

    // Real-time threads last: whatever starts before them is an ordinary thread.
    let beat = match network.as_mut().map(|n| n.beat.take()) {
        Some(Some(socket)) => {
            let v6 = listen.is_some_and(|l| l.is_ipv6());
            let progress = Arc::clone(&progress);
            let beat = BeatPlane::start(config.node.id, socket, v6, progress, bell.clone())
                .map_err(system("the heartbeat thread"))?;
            warnings.extend(beat.granted.refusals.iter().cloned());
            for refusal in &beat.granted.refusals {
                tracing::warn!("{refusal}");
            }
            Some(beat)
        }
        _ => None,
    };
    let realtime = beat.as_ref().is_some_and(|b| b.granted.realtime);

    let identity = Identity { private_key, epoch, realtime };
    let options = settings::options(&config, plan.as_ref(), &identity);
    let mut hands = Hands::default();
    let node = Node::new(options, &mut hands);
    let hub = Arc::new(Hub::new(bell.clone()));
    hub.set_peers(config.peers.iter().map(|p| (p.id, p.name.clone())));
    let requests = Arc::new(RequestQueue {
        queue: Queue::new(REQUESTS_MAX),
        stopped: AtomicBool::new(false),
        bell: bell.clone(),
    });
    if let Some(netlink) = &netlink {
        netlink.set_peers(settings::watched(&config));
    }
    let recent = RecentEvents::default();
    let (udp, tcp, pipes) =
        network.map_or((None, None, None), |n| (Some(n.udp), Some(n.tcp), Some(n.pipes)));
    let parts = Parts {
        poll,
        bell,
        node,
        hands,
        planes: Planes { device, udp, tcp, pipes, beat, netlink, store, store_queue },
        replicas,
        hooks: Hooks::start().map_err(system("the hooks"))?,
        recent: recent.clone(),
        requests: Arc::clone(&requests),
        counter: Counter::new(Arc::clone(&hub)),
        config,
        identity,
        plan,
        progress,
        mtu,
        warnings,
    };
    let turn_loop = TurnLoop::new(parts).map_err(system("the event loop"))?;
    let closing = Closing(Arc::clone(&requests), Arc::clone(&hub));
    let thread = std::thread::Builder::new()
        .name("sidepath-turn".into())
        .spawn(move || {
            // Dropped in this order, also by a panic: whoever sees the requests closed may start a
            // successor on the same state directory.
            let (_closing, _state) = (closing, state);
            turn_loop.run();
        })
        .map_err(system("the turn loop"))?;
    Ok(Daemon { requests: RequestSender(requests), thread: Some(thread), listen, recent, hub })
}

/// Closes the requests when the loop ends, however it ends.
struct Closing(Arc<RequestQueue>, Arc<Hub>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
        self.1.stop();
    }
}

struct Network {
    listen: SocketAddr,
    udp: Udp,
    tcp: Tcp,
    pipes: Pipes,
    beat: Option<BeatSocket>,
}

fn open_network(
    config: &Config,
    listen: SocketAddr,
    poll: &mio::Poll,
    warnings: &mut Vec<String>,
) -> Result<Network, StartError> {
    let refused = |what| move |source| StartError::Listen { address: listen, what, source };
    // TCP first: it refuses a second daemon, which sockets that share their port would let in.
    let listener = tcp::bind(listen).map_err(refused("TCP"))?;
    let listen = listener.local_addr().map_err(refused("TCP"))?;
    // Somebody else's UDP socket that shares nothing is found here too.
    let data = udp::bind(listen).map_err(refused("UDP"))?;
    let beat = match beat_socket(listen, &data) {
        Ok(socket) => socket,
        Err(error) => {
            warnings.push(format!("heartbeats share the data socket: {error}"));
            BeatSocket::Shared(data.try_clone().map_err(refused("UDP"))?)
        }
    };
    let mut udp = Udp::new(data, listen);
    udp.set_peers(settings::endpoints(config));
    udp.measure_all();
    let registry = poll.registry().try_clone().map_err(system("the event loop"))?;
    let mut tcp = Tcp::new(registry, TCP_TOKENS, listen, listener).map_err(refused("TCP"))?;
    tcp.set_peers(config.peers.iter().map(|p| (p.id, p.endpoints.clone())));
    let registry = poll.registry().try_clone().map_err(system("the event loop"))?;
    let mut pipes = Pipes::new(registry, PIPE_TOKENS, listen);
    pipes.set_peers(config.peers.iter().map(|p| (p.id, p.endpoints.clone())));
    Ok(Network { listen, udp, tcp, pipes, beat: Some(beat) })
}

/// The second socket on the same address; the kernel gives it what starts like a beat.
fn beat_socket(listen: SocketAddr, data: &UdpSocket) -> std::io::Result<BeatSocket> {
    let socket = udp::bind(listen)?;
    reuseport::sort_by_first_byte(data, FIRST_BYTE_BEAT)?;
    Ok(BeatSocket::Own(socket))
}

fn open_device(
    config: &Config,
    attachment: Attachment,
    netlink: Option<&NetlinkPlane>,
    mtu: u16,
) -> Result<Device, StartError> {
    match attachment {
        Attachment::None => Ok(Device::None),
        Attachment::Channel(device) => Ok(Device::Channel { device, outgoing: Vec::new() }),
        Attachment::Tun => {
            let InterfaceConfig { name, address, prefix, .. } =
                config.interface.clone().ok_or(StartError::NoInterface)?;
            let tun = Tun::open(&name)
                .map_err(|source| StartError::Tun { name: name.clone(), source })?;
            let routes = settings::routes(config);
            let setup = InterfaceSetup { name: name.clone(), address, prefix, mtu, routes };
            netlink
                .ok_or_else(|| "there is no netlink".to_string())
                .and_then(|netlink| netlink.setup(setup))
                .map_err(|detail| StartError::Interface { name, detail })?;
            Ok(Device::Tun(Box::new(tun)))
        }
    }
}
