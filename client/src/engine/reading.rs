//! Reading a log in order: subscriptions, entries, stubs, floors and heads.

use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{Appended, Entry, MembershipState, StubReason, Stubs, Unsubscribe};
use sealwire_protocol::{Digest, Failure, Head, Kind};

use super::Result;
use super::desk::{Asked, Call};
use super::log::{Log, Subscription};
use crate::chain::{HeadCheck, Step};
use crate::entry::{Rejection, digest_of, judge, judge_totals};
use crate::event::Event;
use crate::numbering;
use crate::store::history;
use crate::store::inbox::{self, Sealed};
use crate::store::logs::{self, Phase};
use crate::store::outbox::{self, Draft};

/// How often the relay is asked anew on one connection when what it sends does not fit.
const RESYNCS_MAX: u32 = 3;

impl Log {
    /// The subscription holds: the relay has taken the cursor.
    pub(super) fn on_subscribed(&mut self, call: &mut Call<'_>, head: Head) -> Result<()> {
        if self.subscription != Subscription::Asked {
            return Ok(());
        }
        self.subscription = Subscription::Reading;
        self.begin_incarnation(head.incarnation);
        self.on_head_check(call, &head).map(|_| ())
    }

    /// There is no subscription.
    pub(super) fn on_not_subscribed(
        &mut self,
        call: &mut Call<'_>,
        failure: &Failure,
    ) -> Result<()> {
        self.subscription = Subscription::Off;
        let code = failure.code;
        if code == ErrorCode::HistoryChanged {
            self.forget_history(call.db)?;
            let event = Event::HistoryChanged { log: self.log, head: failure.head };
            return call.tell(self.id, &event);
        }
        if code == ErrorCode::Revoked {
            return self.removed(call, true, failure.seq.unwrap_or(0));
        }
        if numbering::is_passing(code) {
            self.hold_until = Some(call.now.at + numbering::hold(failure));
            return Ok(());
        }
        self.end(call, code)
    }

    /// An ack was not taken, or the subscription is over.
    pub(super) fn on_trouble(&mut self, call: &mut Call<'_>, failure: &Failure) -> Result<()> {
        if !self.phase.is_open() || !self.subscription.reads() {
            return Ok(());
        }
        if matches!(failure.code, ErrorCode::AckPastHead | ErrorCode::NotSubscribed) {
            self.resync(call);
            return Ok(());
        }
        self.on_not_subscribed(call, failure)
    }

    /// The relay does not serve this log, and nothing is deleted here: the next connection asks
    /// again.
    pub(super) fn end(&mut self, call: &mut Call<'_>, code: ErrorCode) -> Result<()> {
        if self.log.is_totals() && code == ErrorCode::NoSuchLog && self.settle_leave(call, 0)? {
            return self.removed(call, false, 0);
        }
        self.subscription = Subscription::Denied;
        call.tell(self.id, &Event::Ended { log: self.log, code })
    }

    /// An entry.
    pub(super) fn on_entry(&mut self, call: &mut Call<'_>, entry: &Entry) -> Result<()> {
        if !self.subscription.reads() {
            return Ok(());
        }
        let control = entry.header.decode().is_ok_and(|header| header.kind == Kind::Control);
        let step = self.track.step(entry.seq, control);
        match step {
            Step::Known => return self.look_again(call, entry),
            Step::Gap => {
                self.resync(call);
                return Ok(());
            }
            Step::Next | Step::Below => {}
        }
        let digest = digest_of(&entry.header);
        let below = step == Step::Below;
        self.compare_old(call.db, entry.seq, digest)?;
        let taken = if self.log.is_totals() {
            match judge_totals(self.log, entry) {
                Ok(judged) => self.take_totals(call, entry, &judged)?,
                Err(rejection) => Err(rejection),
            }
        } else {
            match judge(self.log, entry) {
                Ok(judged) => self.take(call, entry, &judged, below)?,
                Err(rejection) => Err(rejection),
            }
        };
        match taken {
            Ok(()) => self.is_whole(call, entry.seq)?,
            Err(rejection) => self.reject(call, entry, rejection, below)?,
        }
        if !control {
            self.ack_due = true;
        }
        if below {
            self.track.take_below(entry.seq);
        } else {
            self.advance(call, digest)?;
        }
        Ok(())
    }

    /// What stands in place of entries.
    pub(super) fn on_stubs(&mut self, call: &mut Call<'_>, stubs: &Stubs) -> Result<()> {
        if !self.subscription.reads() {
            return Ok(());
        }
        for (seq, stub) in (stubs.seq..).zip(stubs.stubs.iter()) {
            match self.track.step(seq, false) {
                Step::Known => {
                    // There is no body any more.
                    self.is_whole(call, seq)?;
                    continue;
                }
                Step::Next => self.is_whole(call, seq)?,
                Step::Gap | Step::Below => {
                    self.resync(call);
                    return Ok(());
                }
            }
            self.compare_old(call.db, seq, stub.digest)?;
            match stub.reason {
                StubReason::Own => self.on_own(call, seq, stub.digest)?,
                StubReason::NotAddressed => {}
                // A rotation may have been among them.
                StubReason::Acked | StubReason::Expired => self.holders.doubt(),
            }
            self.advance(call, stub.digest)?;
        }
        Ok(())
    }

    /// The relay keeps only control entries up to `head`.
    pub(super) fn on_floor(&mut self, head: &Head) {
        if self.subscription.reads() && head.incarnation == self.track.incarnation() {
            self.track.begin_floor(head);
            self.holders.doubt();
        }
    }

    /// Everything up to `head` was sent.
    pub(super) fn on_drained(&mut self, call: &mut Call<'_>, head: Head) -> Result<()> {
        if !self.subscription.reads() {
            return Ok(());
        }
        self.track.drained(head.seq);
        self.progressed();
        if self.track.position().seq < head.seq {
            self.resync(call);
            return Ok(());
        }
        if self.on_head_check(call, &head)? {
            self.subscription = Subscription::Drained;
            call.desk.live.push(Event::Drained { log: self.log, head });
            self.on_caught_up(call)?;
        }
        Ok(())
    }

    /// The relay names the log's head.
    pub(super) fn on_head(&mut self, call: &mut Call<'_>, head: &Head) -> Result<()> {
        if self.subscription.reads() {
            self.on_head_check(call, head)?;
        }
        Ok(())
    }

    /// The relay says that this device's membership has changed.
    pub(super) fn on_membership(
        &mut self,
        call: &mut Call<'_>,
        state: MembershipState,
        seq: u64,
    ) -> Result<()> {
        match state {
            MembershipState::Joined => {
                if self.phase == Phase::Joining {
                    self.enter(call)?;
                }
                Ok(())
            }
            MembershipState::Left => {
                // What this device did itself it knows from its own entry. If it did nothing, the
                // relay may have forgotten: nothing is given up, and the next connection asks again.
                if self.leaving {
                    // This may come before the answer, and whoever waits for that must not be told
                    // that there will be none.
                    self.settle_leave(call, seq)?;
                    return self.removed(call, false, seq);
                }
                if self.phase == Phase::Member && seq > self.joined_seq {
                    self.end(call, ErrorCode::NoSuchLog)?;
                }
                Ok(())
            }
            MembershipState::Revoked => self.removed(call, true, seq),
        }
    }

    /// The entry of this device under `count` is appended.
    pub(super) fn on_appended(
        &mut self,
        call: &mut Call<'_>,
        count: u64,
        appended: &Appended,
    ) -> Result<()> {
        let Some((id, digest)) = self.numbering.find(count) else { return Ok(()) };
        if appended.log != self.log {
            tracing::warn!(log = ?self.log, "the relay names another log than the one appended to");
            return Ok(());
        }
        let own = outbox::own(call.db, id)?;
        self.settle(call, count, appended.seq, &own)?;
        if self.phase == Phase::Joining {
            self.enter(call)?;
        }
        // If nothing stands between what was read and this entry, it was read, too. A control entry is
        // read when it comes back: only then is it known when the relay has ordered it.
        let control = own.header.decode().is_ok_and(|header| header.kind == Kind::Control);
        let mut next = self.track;
        if !control
            && next.step(appended.seq, false) == Step::Next
            && next.incarnation() == appended.head.incarnation
            && !appended.duplicate
        {
            next.advance(digest);
            if next.head() == Some(appended.head) {
                self.apply_own(appended.seq, &own);
                self.advance(call, digest)?;
            }
        }
        self.on_head_check(call, &appended.head)?;
        Ok(())
    }

    /// The relay and this device disagree about what comes next, or what stands there: the log is
    /// read again from the cursor. If that is where they differ, the relay will say so.
    pub(super) fn resync(&mut self, call: &mut Call<'_>) {
        if !self.subscription.reads() {
            return;
        }
        self.resyncs += 1;
        tracing::debug!(log = ?self.log, seq = self.track.position().seq, "reading anew");
        if self.resyncs > RESYNCS_MAX {
            self.subscription = Subscription::Denied;
            tracing::warn!(log = ?self.log, "the relay's entries do not fit; giving up for now");
            return;
        }
        self.subscription = Subscription::Leaving;
        call.ask(Asked::Unsubscribe(self.log), Unsubscribe { log: self.log });
    }

    /// The person's wish to leave, if there was one, has come true with the entry at `seq`; 0 if that
    /// is not known. Says whether there was one.
    pub(super) fn settle_leave(&mut self, call: &Call<'_>, seq: u64) -> Result<bool> {
        let leave = outbox::find_unsettled(call.db, self.id, |draft| *draft == Draft::Leave)?;
        if let Some(id) = leave {
            outbox::appended(call.db, id, seq, call.now.ms)?;
        }
        Ok(leave.is_some())
    }

    /// This device is no member any more.
    pub(super) fn removed(&mut self, call: &mut Call<'_>, revoked: bool, seq: u64) -> Result<()> {
        self.subscription = Subscription::Off;
        if !self.phase.is_open() {
            return Ok(());
        }
        self.phase = if revoked { Phase::Revoked } else { Phase::Left };
        logs::set_phase(call.db, self.id, self.phase)?;
        let (log, device) = (self.log, call.device.key());
        let event = if revoked {
            Event::Revoked { log, device, by: None, seq }
        } else {
            Event::Left { log, device, seq }
        };
        call.tell(self.id, &event)
    }

    /// This device is a member from now on.
    pub(super) fn enter(&mut self, call: &mut Call<'_>) -> Result<()> {
        self.phase = Phase::Member;
        self.subscription = Subscription::Off;
        self.expect_key(call);
        self.begin_history(call)?;
        logs::set_phase(call.db, self.id, self.phase)
    }

    /// Takes the next position.
    fn advance(&mut self, call: &mut Call<'_>, digest: Digest) -> Result<()> {
        let before = self.track.position().seq;
        let position = self.track.advance(digest);
        if position.seq > before + 1 {
            // A floor was passed: what is remembered from below it may be of another history.
            history::forget_up_to(call.db, self.id, position.seq - 1)?;
        }
        history::remember(call.db, self.id, position, digest)?;
        self.progressed();
        Ok(())
    }

    /// Compares a head that the relay names with what was read. Says whether they agree.
    fn on_head_check(&mut self, call: &mut Call<'_>, head: &Head) -> Result<bool> {
        let known = history::chain_at(call.db, self.id, head.seq)?;
        match self.track.check(head, |_| known) {
            HeadCheck::Ours | HeadCheck::Unknown => Ok(true),
            HeadCheck::OtherIncarnation => {
                self.resync(call);
                Ok(false)
            }
            HeadCheck::Differs => {
                self.tell_forked(call, head.seq, None)?;
                self.resync(call);
                Ok(false)
            }
        }
    }

    /// Keeps what is not believed, and says so.
    fn reject(
        &mut self,
        call: &mut Call<'_>,
        entry: &Entry,
        reason: Rejection,
        below: bool,
    ) -> Result<()> {
        // One that was told of is told of once, and when it is whole.
        let told = self.spoiled.has(entry.seq);
        if let Ok(header) = entry.header.decode()
            && reason.is_spoiled()
            && !below
        {
            self.note_spoiled(call, entry, &header)?;
        }
        if told {
            return Ok(());
        }
        let event = Event::Rejected { log: self.log, seq: entry.seq, reason };
        call.tell(self.id, &event)?;
        let Ok(header) = entry.header.decode() else { return Ok(()) };
        let sealed = Sealed {
            sender: header.sender,
            count: header.count,
            seq: entry.seq,
            at: entry.at,
            header: entry.header,
            body: entry.body.as_ref().to_vec(),
            recipients: entry.recipients.to_vec(),
            epoch: None,
            before: 0,
        };
        inbox::keep_sealed(call.db, self.id, &sealed, call.now.ms)
    }
}
