//! What a control thread holds to end its process's part in one generation, whatever the others wait for.
//!
//! Gloo and the TCP store cannot be told to stop, so their sockets are shut down: a blocked wait then fails
//! as it does when a peer dies, here and at the peers. A lifeline is made before the generation's first
//! connection. Invariants: aborting is idempotent and sticky, so what is begun afterwards fails too, and
//! connections that are opened meanwhile are found, until the lifeline is closed; after
//! [`Lifeline::close`] returns it touches no socket any more. Not woken: a rank that waits in gloo's
//! rendezvous for a peer that has published its address and not yet connected; that ends by itself in seconds.

use crate::group::{CollectiveError, Group, Membership};
use crate::store::Store;
use mcl_collective_sys as sys;
use mcl_types::PortRange;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use sys::{EngineError, NcclFactory, SocketBaseline};

/// How often an aborted lifeline looks for connections that were opened meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long one attempt to reach a store may take before the lifeline is looked at again.
const ATTEMPT: Duration = Duration::from_millis(500);
/// How long the engine may go on with its own attempts once somebody answers: these cannot be interrupted, and a host
/// that dies in the middle leaves it trying for as long as it may.
const ENGINE_ATTEMPT: Duration = Duration::from_secs(1);
/// How long ranks may take to meet that are all there already: less than a coordinator waits for a rank to come back
/// from a generation that is over.
const RENDEZVOUS: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Ends all waits of one generation in this process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifeline(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    aborted: AtomicBool,
    sockets: SocketBaseline,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Not owned: a group must be free to die with the trainer that holds it.
    group: Weak<sys::Group>,
}

impl Lifeline {
    /// Takes note of the sockets that are open now; they, and any connection to `spared_ports`, are not this
    /// generation's.
    ///
    /// # Errors
    /// When the process cannot see its own descriptors.
    pub fn new(spared_ports: &[u16]) -> Result<Self, CollectiveError> {
        let sockets = SocketBaseline::take(spared_ports).map_err(CollectiveError::Descriptors)?;
        Ok(Self(Arc::new(Inner { aborted: AtomicBool::new(false), sockets, state: Mutex::default() })))
    }

    /// Whether it was aborted.
    pub fn is_aborted(&self) -> bool {
        self.0.aborted.load(Ordering::Acquire)
    }

    /// Ends every wait of this generation, here and at the peers, within milliseconds; returns at once.
    pub fn abort(&self) {
        if self.0.aborted.swap(true, Ordering::AcqRel) {
            return;
        }
        self.shut_down();
        let inner = Arc::clone(&self.0);
        let watch = move || {
            let lifeline = Self(inner);
            while lifeline.shut_down() {
                std::thread::sleep(LOOK_AGAIN);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("mcl-abort".to_owned()).spawn(watch) {
            tracing::warn!(%error, "no thread to look for late connections");
        }
    }

    /// Nothing of this generation is left to abort. The sockets opened from now on belong to another.
    pub fn close(&self) {
        self.state().closed = true;
    }

    /// Whether there may be more to do.
    fn shut_down(&self) -> bool {
        // Held throughout: closing waits until no socket is touched any more.
        let mut state = self.state();
        if state.closed {
            return false;
        }
        if let Err(error) = self.0.sockets.shut_down_newer() {
            tracing::warn!(%error, "sockets of the group cannot be shut down");
        }
        // Once: NCCL does not expect to be aborted again and again.
        if let Some(group) = std::mem::take(&mut state.group).upgrade()
            && let Err(error) = group.abort()
        {
            tracing::warn!(%error, "group abort refused");
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn check(
        &self,
        collective: &'static str,
        membership: Membership,
    ) -> Result<(), CollectiveError> {
        if self.is_aborted() { Err(CollectiveError::Aborted { collective, membership }) } else { Ok(()) }
    }

    /// As [`Store::host`]; while all ports are taken it is tried again, `patience` long or until
    /// [`Lifeline::abort`]: another process of this machine may be about to leave the generation before.
    ///
    /// # Errors
    /// As [`Store::host`].
    pub fn host(
        &self,
        address: &str,
        ports: Option<PortRange>,
        timeout: Duration,
        patience: Duration,
    ) -> Result<Store, CollectiveError> {
        let started = Instant::now();
        loop {
            match Store::host(address, ports, timeout) {
                Err(CollectiveError::PortsTaken { .. })
                    if started.elapsed() < patience && !self.is_aborted() =>
                {
                    std::thread::sleep(PAUSE);
                }
                hosted => return hosted,
            }
        }
    }

    /// As [`Store::connect`], ended early by [`Lifeline::abort`].
    ///
    /// # Errors
    /// As [`Store::connect`], and when it was aborted.
    pub fn connect(&self, address: &str, timeout: Duration) -> Result<Store, CollectiveError> {
        let started = Instant::now();
        let failed = |reason: String| CollectiveError::Store {
            address: address.to_owned(),
            source: EngineError::Communication(reason),
        };
        // The engine's own attempts cannot be interrupted while nothing answers, so it is called only once
        // somebody does, and not for long.
        let store = loop {
            if self.is_aborted() {
                return Err(failed("told to leave".to_owned()));
            }
            let left = timeout.saturating_sub(started.elapsed());
            let refused = match reach(address) {
                Ok(()) => match Store::connect(address, left.min(ENGINE_ATTEMPT)) {
                    Ok(store) => break store,
                    Err(refused) => refused,
                },
                Err(reason) => failed(reason),
            };
            if left.is_zero() {
                return Err(refused);
            }
            std::thread::sleep(PAUSE);
        };
        store.set_timeout(timeout)?;
        if self.is_aborted() { Err(failed("told to leave".to_owned())) } else { Ok(store) }
    }

    /// As [`Group::form`], ended early by [`Lifeline::abort`], as is every later wait in the group.
    ///
    /// # Errors
    /// As [`Group::form`], and when it was aborted.
    pub fn form(
        &self,
        store: &Store,
        membership: Membership,
        timeout: Duration,
        address: &str,
        nccl: Option<NcclFactory>,
    ) -> Result<Group, CollectiveError> {
        self.check("rendezvous", membership)?;
        let rendezvous = timeout.min(RENDEZVOUS);
        let mut group = Group::form_within(rendezvous, store, membership, timeout, address, nccl)?;
        self.state().group = Arc::downgrade(&group.inner);
        group.lifeline = Some(self.clone());
        self.check("rendezvous", membership)?;
        Ok(group)
    }
}

/// Whether somebody accepts connections at `address`.
fn reach(address: &str) -> Result<(), String> {
    let mut reason = "the name has no address".to_owned();
    for address in address.to_socket_addrs().map_err(|e| e.to_string())? {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(_) => return Ok(()),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}
