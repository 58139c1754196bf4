//! Pages of entries: the busiest read there is.
//!
//! A page is bounded by the bytes of the bodies that it gives and of the names of addressees, and no
//! body is read from the disk that is not given: a running sum over lengths says where it ends. On
//! SQLite a row costs more than what is in it, because its connection wakes the reader for each; so
//! there the whole page comes as one row: the numbers as text, everything else as runs of bytes that the
//! numbers cut into pieces. That is three times cheaper there, and no cheaper on PostgreSQL. Each run is
//! of one column, and the numbers of an entry are written by one call: SQLite copies what is joined.

use std::ops::Range;

use sealwire_actors::ports::{Controls, ControlsRequest, PageRequest, StoreError, StoredEntry};
use sealwire_protocol::header::{HEADER_BYTES, HeaderBytes};
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{Body, Digest};
use sqlx::Executor;

use super::dialect::{Columns, Dialect, Value};
use super::failure::corrupt;
use super::lanes::Lanes;
use super::reads::{bound, recipients, seq};

/// Entries of log `$1` after `$2` up to what is given here, at most `$6`, with those bodies that are for
/// the reader `$5` who joined at `$4`; in a vault, all are. The header holds its sender at byte 18 (from 1).
/// `instr` would also match across two keys, but members whose keys' bytes fall so cannot be made:
/// that is a search over 128 bits.
macro_rules! from_entries_and_given_bodies {
    ($up_to:expr) => {
        concat!(
            " from entries e left join bodies b on b.log = e.log and b.seq = e.seq and ( \
                (select log_type from logs where key = $1) = 2 \
                or (e.seq > $4 and substr(e.header, 18, 32) <> $5 \
                    and (e.recipients is null or instr(e.recipients, $5) > 0))) \
             where e.log = $1 and e.seq > $2 and e.seq <= ",
            $up_to,
            " order by e.seq limit $6 + 0"
        )
    };
}

/// The page up to `$3`, at most `$7` bytes, row by row.
const PAGE: &str = concat!(
    "select p.seq, p.at, p.header, p.signature, p.recipients, p.chain, p.body, p.totals_kind from ( \
        select e.seq, e.at, e.header, e.signature, e.recipients, e.chain, \
            coalesce(e.control_body, b.body) as body, b.totals_kind, \
            sum(coalesce(length(e.control_body), length(b.body), 0) \
                + coalesce(length(e.recipients), 0)) \
                over (order by e.seq rows unbounded preceding) as bytes, \
            row_number() over (order by e.seq rows unbounded preceding) as place",
    from_entries_and_given_bodies!("$3"),
    ") p where p.bytes <= $7 or p.place = 1 order by p.seq"
);

/// The last seq of such a page.
macro_rules! last_that_fits {
    () => {
        concat!(
            "(select coalesce(max(s.seq) filter (where s.sum <= $7), min(s.seq)) from ( \
                select l.seq, sum(l.bytes) over (order by l.seq rows unbounded preceding) as sum \
                from ( \
                    select e.seq, coalesce(length(e.control_body), length(b.body), 0) \
                        + coalesce(length(e.recipients), 0) as bytes",
            from_entries_and_given_bodies!("$3"),
            ") l) s)"
        )
    };
}

/// The same page as one row. `$8` is an empty byte string, for what is not there.
const PACKED_PAGE: &str = concat!(
    "select \
        string_agg(format('%d %d %d %d %d %d', p.seq, p.at, coalesce(length(p.signature), -1), \
            coalesce(length(p.recipients), -1), coalesce(length(p.body), -1), \
            coalesce(octet_length(p.totals_kind), -1)), ','), \
        string_agg(p.header, $8), \
        string_agg(p.chain, $8), \
        string_agg(p.signature, $8), \
        string_agg(p.recipients, $8), \
        string_agg(p.body, $8), \
        string_agg(p.totals_kind, '') \
     from ( \
        select e.seq, e.at, e.header, e.signature, e.recipients, e.chain, \
            coalesce(e.control_body, b.body) as body, b.totals_kind",
    from_entries_and_given_bodies!(last_that_fits!()),
    ") p"
);

/// Of entries whose bodies are kept with them: the last seq of a page of at most `$4` entries and `$5`
/// bytes, the last one without the bytes, and how many that are. No body is read for it: both databases
/// know a length without one.
const CONTROLS_THAT_FIT: &str = "select \
        coalesce(max(s.seq) filter (where s.sum <= $5), min(s.seq)), max(s.seq), count(*) from ( \
        select l.seq, sum(l.bytes) over (order by l.seq rows unbounded preceding) as sum from ( \
            select seq, length(control_body) + coalesce(length(recipients), 0) as bytes \
            from entries where log = $1 and seq > $2 and seq <= $3 and control_body is not null \
            order by seq limit $4 + 0) l) s";

const CONTROLS: &str = "select seq, at, header, signature, recipients, chain, control_body, \
        cast(null as text) \
     from entries where log = $1 and seq > $2 and seq <= $3 and control_body is not null \
     order by seq";

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    pub(super) async fn read_page(
        &self,
        request: &PageRequest,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let values = [
            Value::Int(request.key.0),
            seq(request.after),
            seq(request.up_to),
            seq(request.joined_seq),
            Value::bytes(&request.reader.0),
            bound(request.entries_max),
            bound(request.bytes_max),
            Value::bytes(&[]),
        ];
        if D::ROWS_ARE_DEAR {
            let rows = self.query(PACKED_PAGE, &values).await?;
            return rows.first().map_or(Ok(Vec::new()), unpacked);
        }
        self.query(PAGE, &values[..7]).await?.iter().map(stored_entry).collect()
    }

    pub(super) async fn read_controls(
        &self,
        request: &ControlsRequest,
    ) -> Result<Controls, StoreError> {
        let ControlsRequest { key, after, up_to, entries_max, bytes_max } = *request;
        let mut values =
            [Value::Int(key.0), seq(after), seq(up_to), bound(entries_max), bound(bytes_max)];
        let mut lease = self.read().await?;
        let found = lease.rows(CONTROLS_THAT_FIT, &values).await?;
        let found = found.first().ok_or_else(|| corrupt("an aggregate without a row"))?;
        let Some(last) = found.maybe_int(0)? else {
            return Ok(Controls { entries: Vec::new(), complete: entries_max > 0 });
        };
        let complete = last == found.int(1)? && found.number(2)? < entries_max as u64;
        values[2] = Value::Int(last);
        let rows = lease.rows(CONTROLS, &values[..3]).await?;
        let entries = rows.iter().map(stored_entry).collect::<Result<_, _>>()?;
        Ok(Controls { entries, complete })
    }
}

/// An entry that came as a row.
pub(super) fn stored_entry(row: &impl Columns) -> Result<StoredEntry, StoreError> {
    Ok(StoredEntry {
        seq: row.number(0)?,
        at: row.number(1)?,
        header: header(row.bytes(2)?)?,
        signature: row.maybe_bytes(3)?.map(signature).transpose()?,
        recipients: recipients(row.maybe_bytes(4)?.unwrap_or_default())?,
        chain: row.digest(5)?,
        body: row.maybe_bytes(6)?.map(Body::copy_from),
        totals_kind: row.maybe_text(7)?.map(str::to_owned),
    })
}

fn header(bytes: &[u8]) -> Result<HeaderBytes, StoreError> {
    HeaderBytes::from_slice(bytes).map_err(|_| corrupt("a header's length"))
}

fn signature(bytes: &[u8]) -> Result<Signature, StoreError> {
    Signature::from_slice(bytes).ok_or_else(|| corrupt("a signature's length"))
}

/// Lists of numbers: commas between lists, spaces within.
pub(super) fn lists<const LENGTH: usize>(
    text: &str,
) -> impl Iterator<Item = Result<[i64; LENGTH], StoreError>> {
    text.split(',').map(|list| {
        let mut numbers = [0; LENGTH];
        let mut parts = list.split(' ');
        for number in &mut numbers {
            let part = parts.next().and_then(|part| part.parse().ok());
            *number = part.ok_or_else(|| corrupt("a list of numbers"))?;
        }
        Ok(numbers)
    })
}

/// The entries of a page that came as one row.
fn unpacked(row: &impl Columns) -> Result<Vec<StoredEntry>, StoreError> {
    let Some(numbers) = row.maybe_text(0)? else { return Ok(Vec::new()) };
    let run = |place| Ok(Pieces::of(row.maybe_bytes(place)?.unwrap_or_default()));
    let [mut headers, mut chains, mut signatures] = [run(1)?, run(2)?, run(3)?];
    let [mut names, mut bodies] = [run(4)?, run(5)?];
    let mut kinds = Pieces::of(row.maybe_text(6)?.unwrap_or_default().as_bytes());
    let mut entries = Vec::new();
    for list in lists(numbers) {
        let [seq, at, signature_bytes, name_bytes, body_bytes, kind_bytes] = list?;
        let unsigned = |number| u64::try_from(number).map_err(|_| corrupt("a negative number"));
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| corrupt("a kind"));
        entries.push(StoredEntry {
            seq: unsigned(seq)?,
            at: unsigned(at)?,
            header: header(headers.take(HEADER_BYTES)?)?,
            chain: Digest::from_slice(chains.take(Digest::LEN)?)
                .ok_or_else(|| corrupt("a chain"))?,
            signature: signatures.take_if(signature_bytes)?.map(signature).transpose()?,
            recipients: recipients(names.take_if(name_bytes)?.unwrap_or_default())?,
            // Copied out, so that one body does not keep the whole page.
            body: bodies.take_if(body_bytes)?.map(Body::copy_from),
            totals_kind: kinds.take_if(kind_bytes)?.map(text).transpose()?,
        });
    }
    let runs = [headers, chains, signatures, names, bodies, kinds];
    if runs.iter().any(|run| run.rest() > 0) {
        return Err(corrupt("a page's length"));
    }
    Ok(entries)
}

/// A run of bytes that is cut into pieces from the front.
struct Pieces<'a> {
    whole: &'a [u8],
    at: usize,
}

impl<'a> Pieces<'a> {
    fn of(whole: &'a [u8]) -> Self {
        Self { whole, at: 0 }
    }

    /// The next piece.
    fn take(&mut self, length: usize) -> Result<&'a [u8], StoreError> {
        let range: Range<usize> = self.at..self.at.saturating_add(length);
        let piece = self.whole.get(range).ok_or_else(|| corrupt("a page's length"))?;
        self.at += length;
        Ok(piece)
    }

    /// The next piece, unless its length is negative: then there is none.
    fn take_if(&mut self, length: i64) -> Result<Option<&'a [u8]>, StoreError> {
        usize::try_from(length).ok().map(|length| self.take(length)).transpose()
    }

    fn rest(&self) -> usize {
        self.whole.len() - self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_shorter_than_its_numbers_say_is_corrupt() {
        let mut pieces = Pieces::of(b"abc");
        assert_eq!(pieces.take(2), Ok(&b"ab"[..]));
        assert_eq!(pieces.take_if(-1), Ok(None));
        assert_eq!(pieces.take_if(0), Ok(Some(&b""[..])));
        assert_eq!(pieces.take(2), Err(StoreError::Corrupt));
        assert_eq!(pieces.take(usize::MAX), Err(StoreError::Corrupt));
        assert_eq!(pieces.rest(), 1);
    }
}
