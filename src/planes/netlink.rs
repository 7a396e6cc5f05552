//! What the kernel knows of links and routes: sets the virtual interface up, and tells when the
//! link that leads to a peer goes down or comes back.
//!
//! A helper thread with a small tokio runtime speaks rtnetlink; nothing is ever shelled out.
//!
//! Awkward cases:
//! * When our own link is down there is no route to ask about: the interface that last led to a
//!   peer is remembered.
//! * The kernel drops events when the socket overflows; links and routes are therefore also asked
//!   for every two seconds.
//! * Where netlink is not allowed, the daemon runs without these facts: silence is then noticed
//!   by heartbeats alone.
//! * Addresses and routes of the virtual interface vanish with the device; nothing is left behind.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc},
    thread::JoinHandle,
    time::Duration,
};

use failover::{NetworkFact, NodeId};
use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::RouteAttribute,
    },
};
use tokio::sync::mpsc;

use super::queue::{Bell, Queue};

const QUEUE: usize = 256;
/// How often links and routes are asked for besides events.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Setting an interface up takes a millisecond; a kernel that needs longer is stuck.
const SETUP_WITHIN: Duration = Duration::from_secs(10);

/// What to set up.
#[derive(Debug, Clone)]
pub(crate) struct InterfaceSetup {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) mtu: u16,
    /// Addresses of peers outside our prefix need a route of their own.
    pub(crate) routes: Vec<IpAddr>,
}

enum Order {
    Setup(InterfaceSetup, std_mpsc::Sender<Result<(), String>>),
    Mtu(String, u16),
    Peers(Vec<(NodeId, IpAddr)>),
}

/// What netlink tells the loop.
#[derive(Debug)]
pub(crate) enum FromNetlink {
    /// A fact for the core.
    Fact(NetworkFact),
    /// Routes or links changed: path MTUs should be asked for again.
    RoutesChanged,
}

/// The handle of the netlink thread.
#[derive(Debug)]
pub(crate) struct NetlinkPlane {
    orders: Option<mpsc::Sender<Order>>,
    facts: Arc<Queue<FromNetlink>>,
    thread: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Setup(..) => "Setup",
            Self::Mtu(..) => "Mtu",
            Self::Peers(..) => "Peers",
        })
    }
}

impl NetlinkPlane {
    pub(crate) fn start(bell: Bell) -> io::Result<Self> {
        let facts = Arc::new(Queue::new(QUEUE));
        let trouble = Arc::new(Mutex::new(None));
        let (orders, inbox) = mpsc::channel(16);
        let (queue, told) = (Arc::clone(&facts), Arc::clone(&trouble));
        let thread = std::thread::Builder::new().name("sidepath-link".into()).spawn(move || {
            if let Err(error) = run(inbox, &queue, &bell) {
                tracing::warn!(%error, "no link events: netlink ended");
                *told.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(format!("no link events: {error}"));
            }
        })?;
        Ok(Self { orders: Some(orders), facts, thread: Some(thread), trouble })
    }

    /// Sets the virtual interface up and waits for it: addresses, MTU, state, routes.
    pub(crate) fn setup(&self, setup: InterfaceSetup) -> Result<(), String> {
        let (reply, answer) = std_mpsc::channel();
        let gone = || "the netlink helper has ended".to_string();
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.try_send(Order::Setup(setup, reply)).map_err(|_| gone())?;
        answer.recv_timeout(SETUP_WITHIN).map_err(|_| {
            let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.clone().unwrap_or_else(|| "netlink did not answer".into())
        })?
    }

    /// Whose links to watch.
    pub(crate) fn set_peers(&self, peers: Vec<(NodeId, IpAddr)>) {
        self.order(Order::Peers(peers));
    }

    /// A new MTU for the virtual interface.
    pub(crate) fn set_mtu(&self, name: &str, mtu: u16) {
        self.order(Order::Mtu(name.into(), mtu));
    }

    fn order(&self, order: Order) {
        // Full only when the helper is stuck; it is then of no use anyway.
        if self.orders.as_ref().is_some_and(|orders| orders.try_send(order).is_err()) {
            tracing::debug!("the netlink helper does not take orders");
        }
    }

    pub(crate) fn take(&self, into: &mut VecDeque<FromNetlink>) {
        self.facts.take(into);
    }

    /// Why there are no link events, if there are none.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the thread to end and gives its handle to whoever joins.
    pub(crate) fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.orders = None;
        self.thread.take()
    }
}

fn run(inbox: mpsc::Receiver<Order>, facts: &Queue<FromNetlink>, bell: &Bell) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        let connection = tokio::spawn(connection);
        let mut watch = Watch { handle, facts, bell, peers: Vec::new(), up: BTreeMap::new() };
        watch.serve(inbox, events).await;
        connection.abort();
        Ok(())
    })
}

struct Watch<'a> {
    handle: Handle,
    facts: &'a Queue<FromNetlink>,
    bell: &'a Bell,
    peers: Vec<Watched>,
    /// Links by index.
    up: BTreeMap<u32, bool>,
}

struct Watched {
    id: NodeId,
    address: IpAddr,
    /// The link its route last used.
    link: Option<u32>,
    /// What was last said about it.
    said: Option<bool>,
}

impl Watch<'_> {
    async fn serve(
        &mut self,
        mut inbox: mpsc::Receiver<Order>,
        mut events: impl futures_util::Stream<
            Item = (
                rtnetlink::packet_core::NetlinkMessage<RouteNetlinkMessage>,
                rtnetlink::sys::SocketAddr,
            ),
        > + Unpin,
    ) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Hand-made select: which of the three happened.
            let happened = {
                let order = std::pin::pin!(inbox.recv());
                let event = std::pin::pin!(events.next());
                let tick = std::pin::pin!(look.tick());
                let either = futures_util::future::select(order, event);
                match futures_util::future::select(either, tick).await {
                    futures_util::future::Either::Left((
                        futures_util::future::Either::Left((order, _)),
                        _,
                    )) => Happened::Order(order),
                    futures_util::future::Either::Left((
                        futures_util::future::Either::Right((event, _)),
                        _,
                    )) => Happened::Event(event.map(|(message, _)| message.payload)),
                    futures_util::future::Either::Right(_) => Happened::Tick,
                }
            };
            match happened {
                Happened::Order(None) | Happened::Event(None) => return,
                Happened::Order(Some(order)) => self.order(order).await,
                Happened::Event(Some(payload)) => self.event(payload).await,
                Happened::Tick => self.look().await,
            }
        }
    }

    async fn order(&mut self, order: Order) {
        match order {
            Order::Setup(setup, reply) => {
                let result = set_up(&self.handle, &setup).await;
                // Whoever asked may have given up.
                let _ = reply.send(result);
            }
            Order::Mtu(name, mtu) => {
                let message = LinkUnspec::new_with_name(&name).mtu(mtu.into()).build();
                if let Err(error) = self.handle.link().set(message).execute().await {
                    tracing::warn!(%error, interface = name, mtu, "cannot change the MTU");
                }
            }
            Order::Peers(peers) => {
                let mut before = std::mem::take(&mut self.peers);
                for (id, address) in peers {
                    let known = before.iter().position(|w| w.id == id && w.address == address);
                    self.peers.push(
                        known.map_or(Watched { id, address, link: None, said: None }, |at| {
                            before.swap_remove(at)
                        }),
                    );
                }
                self.look().await;
            }
        }
    }

    async fn event(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) {
        match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                let was = self.up.insert(link.header.index, is_up(&link));
                if was != Some(is_up(&link)) {
                    self.tell();
                    // A link that came up may carry routes again, and another MTU.
                    self.push(FromNetlink::RoutesChanged);
                    self.find_routes().await;
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                self.up.insert(link.header.index, false);
                self.tell();
                self.up.remove(&link.header.index);
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_),
            ) => {
                self.find_routes().await;
                self.push(FromNetlink::RoutesChanged);
            }
            _ => {}
        }
    }

    /// Asks for everything anew.
    async fn look(&mut self) {
        if self.peers.is_empty() {
            return;
        }
        let mut links = self.handle.link().get().execute();
        let mut up = BTreeMap::new();
        while let Ok(Some(link)) = links.try_next().await {
            up.insert(link.header.index, is_up(&link));
        }
        if !up.is_empty() {
            self.up = up;
        }
        self.find_routes().await;
    }

    async fn find_routes(&mut self) {
        for at in 0..self.peers.len() {
            if let Some(link) = route_link(&self.handle, self.peers[at].address).await {
                let peer = &mut self.peers[at];
                if peer.link != Some(link) {
                    peer.link = Some(link);
                }
            }
        }
        self.tell();
    }

    /// Says what changed about the links of peers. The first sight of a link that is up is no
    /// news.
    fn tell(&mut self) {
        let mut facts = Vec::new();
        for peer in &mut self.peers {
            let Some(up) = peer.link.and_then(|link| self.up.get(&link)).copied() else { continue };
            if peer.said != Some(up) && !(peer.said.is_none() && up) {
                facts.push(NetworkFact::Link { peer: peer.id, up });
            }
            peer.said = Some(up);
        }
        for fact in facts {
            self.push(FromNetlink::Fact(fact));
        }
    }

    fn push(&self, item: FromNetlink) {
        // When full, the loop is stuck, and links are the least of the troubles; the next look
        // does not repeat a fact, but heartbeats notice what it would have said.
        if self.facts.push(item).is_ok() {
            self.bell.ring();
        }
    }
}

enum Happened {
    Order(Option<Order>),
    Event(Option<NetlinkPayload<RouteNetlinkMessage>>),
    Tick,
}

fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
}

/// The link the kernel would send to `address` by.
async fn route_link(handle: &Handle, address: IpAddr) -> Option<u32> {
    let message = match address {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
        IpAddr::V6(v6) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build()
        }
    };
    let mut routes = std::pin::pin!(handle.route().get(message).execute());
    let route = routes.try_next().await.ok()??;
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => Some(*link),
        _ => None,
    })
}

async fn set_up(handle: &Handle, setup: &InterfaceSetup) -> Result<(), String> {
    let name = &setup.name;
    let mut links = handle.link().get().match_name(name.clone()).execute();
    let link = links
        .try_next()
        .await
        .map_err(|e| format!("interface {name} not found: {e}"))?
        .ok_or_else(|| format!("interface {name} not found"))?;
    let index = link.header.index;
    let mut change = LinkUnspec::new_with_index(index).up();
    if !link.attributes.contains(&LinkAttribute::Mtu(setup.mtu.into())) {
        change = change.mtu(setup.mtu.into());
    }
    handle
        .link()
        .set(change.build())
        .execute()
        .await
        .map_err(|e| format!("cannot bring {name} up with MTU {}: {e}", setup.mtu))?;
    handle
        .address()
        .add(index, setup.address, setup.prefix)
        .execute()
        .await
        .map_err(|e| format!("cannot give {name} the address {}: {e}", setup.address))?;
    for route in &setup.routes {
        let message = match route {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*v4, 32)
                .output_interface(index)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(*v6, 128)
                .output_interface(index)
                .build(),
        };
        handle
            .route()
            .add(message)
            .execute()
            .await
            .map_err(|e| format!("cannot route {route} to {name}: {e}"))?;
    }
    Ok(())
}
