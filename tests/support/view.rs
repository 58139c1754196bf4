//! What one device has read of one log, checked as it comes: no gap, no repetition, one chain.

use sealwire_client::chain::{Step, Track};
use sealwire_client::entry;
use sealwire_client::numbering::Mark;
use sealwire_protocol::digest::{chain_next, chain_start, entry_digest};
use sealwire_protocol::frame::{Entry, StubReason, Stubs};
use sealwire_protocol::{AckSet, Audience, Control, Digest, Head, Kind, LogId};

/// What stands at a seq, as far as this device was shown it.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// An entry with its body.
    Entry { kind: Kind, body: Vec<u8> },
    /// A stub.
    Stub(StubReason),
}

/// One device's view of one log.
pub(crate) struct View {
    pub(crate) log: LogId,
    track: Track,
    /// The newest entry of this device's own.
    pub(crate) own: Mark,
    /// What was read, with its seq and digest. Control entries from below a floor are among them.
    pub(crate) items: Vec<(u64, Digest, Item)>,
    /// The head of the last `Drained` of this subscription.
    pub(crate) drained: Option<Head>,
    pub(crate) acked: AckSet,
}

impl View {
    pub(crate) fn new(log: LogId) -> Self {
        Self {
            log,
            track: Track::new(log),
            own: Mark::NONE,
            items: Vec::new(),
            drained: None,
            acked: AckSet::new(),
        }
    }

    /// Forgets what was read, but not what was written.
    pub(crate) fn forget(&mut self) {
        *self = Self { own: self.own, ..Self::new(self.log) };
    }

    /// How far the log was read; none if nothing was.
    pub(crate) fn head(&self) -> Option<Head> {
        self.track.head()
    }

    /// The head of what was read up to `seq`.
    pub(crate) fn head_at(&self, seq: u64) -> Head {
        let chain = self
            .items
            .iter()
            .take_while(|(at, ..)| *at <= seq)
            .fold(chain_start(self.log), |chain, (at, digest, _)| chain_next(chain, *at, *digest));
        Head { incarnation: self.track.incarnation(), seq, chain }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.track.position().seq
    }

    /// The relay takes the cursor.
    pub(crate) fn subscribed(&mut self, incarnation: u64) {
        self.track.accepted(incarnation);
        self.drained = None;
    }

    pub(crate) fn begin_floor(&mut self, head: &Head) {
        self.track.begin_floor(head);
    }

    pub(crate) fn drained(&mut self, head: Head) {
        self.track.drained(head.seq);
        assert_eq!(self.head().map(|head| (head.seq, head.chain)), Some((head.seq, head.chain)));
        self.drained = Some(head);
    }

    pub(crate) fn take_entry(&mut self, frame: &Entry) {
        let (kind, digest) = if self.log.is_totals() {
            vouched(self.log, frame)
        } else {
            let judged = entry::judge(self.log, frame).expect("a whole entry");
            (judged.header.kind, judged.digest)
        };
        let item = Item::Entry { kind, body: frame.body.as_ref().to_vec() };
        self.take(frame.seq, digest, kind == Kind::Control, item);
    }

    pub(crate) fn take_stubs(&mut self, frame: &Stubs) {
        for (seq, stub) in (frame.seq..).zip(frame.stubs.iter()) {
            self.take(seq, stub.digest, false, Item::Stub(stub.reason));
        }
    }

    fn take(&mut self, seq: u64, digest: Digest, control: bool, item: Item) {
        match self.track.step(seq, control) {
            Step::Next => {
                self.track.advance(digest);
            }
            Step::Below => {}
            wrong @ (Step::Known | Step::Gap) => {
                panic!("{wrong:?}: seq {seq} came when {} had been read", self.seq())
            }
        }
        self.items.push((seq, digest, item));
    }

    pub(crate) fn item(&self, seq: u64) -> Option<&Item> {
        self.items.iter().find(|(at, ..)| *at == seq).map(|(_, _, item)| item)
    }

    /// The bodies of all entries that were read, but for those of control entries, in order.
    pub(crate) fn bodies(&self) -> Vec<&[u8]> {
        self.items
            .iter()
            .filter_map(|(_, _, item)| match item {
                Item::Entry { kind: Kind::Control, .. } | Item::Stub(_) => None,
                Item::Entry { body, .. } => Some(body.as_slice()),
            })
            .collect()
    }

    /// The reason of the stub at `seq`; none if there is no stub.
    pub(crate) fn stub(&self, seq: u64) -> Option<StubReason> {
        match self.item(seq)? {
            Item::Stub(reason) => Some(*reason),
            Item::Entry { .. } => None,
        }
    }
}

/// What can be judged of an entry of a `totals` group, whose authors are the relay's word.
fn vouched(log: LogId, frame: &Entry) -> (Kind, Digest) {
    let header = frame.header.decode().expect("a header");
    let relays = header.kind == Kind::Control;
    assert_eq!((header.log, frame.signature), (log, None));
    assert!(header.holds(frame.body.as_ref()), "another body");
    assert_eq!(header.audience, Audience::of(&frame.recipients));
    assert_eq!(header.sender.is_zero(), relays, "the relay writes control entries and no others");
    assert_eq!(frame.totals_kind.is_none(), relays);
    if relays {
        Control::decode(frame.body.as_ref()).expect("a control body");
    }
    (header.kind, entry_digest(&frame.header))
}
