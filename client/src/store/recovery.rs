//! What the device keeps of its recovery vault, so that it can seal it anew when a group is added.

use rusqlite::{Connection, OptionalExtension};
use sealwire_protocol::Digest;
use zeroize::Zeroizing;

use super::StoreError;
use crate::address::RelayUrl;
use crate::recovery::Format;
use crate::stretch::Cost;

/// The device's recovery vault. It has no `Debug`, and its keys are wiped.
pub(crate) struct Kept {
    pub(crate) relay: RelayUrl,
    pub(crate) format: Format,
    /// What the relay is given in the place of a code.
    pub(crate) code: Zeroizing<String>,
    /// Native: the half of the key that comes from the code.
    pub(crate) code_key: Option<Zeroizing<[u8; 32]>>,
    /// What the PIN gives.
    pub(crate) key: Zeroizing<[u8; 32]>,
    pub(crate) salt: Vec<u8>,
    pub(crate) cost: Cost,
    /// The digest of what the relay was given last.
    pub(crate) uploaded: Option<Digest>,
    /// The seed of the device whose place this one has taken.
    pub(crate) old_seed: Option<Zeroizing<[u8; 32]>>,
}

impl Kept {
    /// The same, with another digest of what the relay was given.
    pub(crate) fn again(&self, uploaded: Option<Digest>) -> Self {
        Self {
            relay: self.relay.clone(),
            format: self.format,
            code: self.code.clone(),
            code_key: self.code_key.clone(),
            key: self.key.clone(),
            salt: self.salt.clone(),
            cost: self.cost,
            uploaded,
            old_seed: self.old_seed.clone(),
        }
    }
}

/// Keeps it, in place of an earlier one.
pub(crate) fn save(db: &Connection, kept: &Kept) -> Result<(), StoreError> {
    db.execute("delete from recovery", [])?;
    db.execute(
        "insert into recovery (relay, format, code, code_key, key, salt, memory_kib, passes, lanes,
             uploaded, old_seed)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        (
            kept.relay.as_str(),
            i64::from(kept.format == Format::Native),
            kept.code.as_str(),
            kept.code_key.as_ref().map(|key| key.to_vec()),
            &kept.key[..],
            &kept.salt,
            kept.cost.memory_kib,
            kept.cost.passes,
            kept.cost.lanes,
            kept.uploaded.map(|digest| digest.0.to_vec()),
            kept.old_seed.as_ref().map(|seed| seed.to_vec()),
        ),
    )?;
    Ok(())
}

/// The device's recovery vault, if it has one.
pub(crate) fn find(db: &Connection) -> Result<Option<Kept>, StoreError> {
    let row = db
        .query_row(
            "select relay, format, code, code_key, key, salt, memory_kib, passes, lanes, uploaded,
                 old_seed from recovery",
            [],
            |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, i64>(1)?,
                    Zeroizing::new(row.get::<_, String>(2)?),
                    row.get::<_, Option<Vec<u8>>>(3)?,
                    row.get::<_, Vec<u8>>(4)?,
                    row.get::<_, Vec<u8>>(5)?,
                    Cost { memory_kib: row.get(6)?, passes: row.get(7)?, lanes: row.get(8)? },
                    row.get::<_, Option<Vec<u8>>>(9)?,
                    row.get::<_, Option<Vec<u8>>>(10)?,
                ))
            },
        )
        .optional()?;
    let Some((relay, format, code, code_key, key, salt, cost, uploaded, old_seed)) = row else {
        return Ok(None);
    };
    Ok(Some(Kept {
        relay: RelayUrl::parse(&relay).map_err(|_| StoreError::Damaged)?,
        format: if format == 1 { Format::Native } else { Format::Totals },
        code,
        code_key: code_key.map(secret).transpose()?,
        key: secret(key)?,
        salt,
        cost,
        uploaded: uploaded
            .map(|digest| Digest::from_slice(&digest).ok_or(StoreError::Damaged))
            .transpose()?,
        old_seed: old_seed.map(secret).transpose()?,
    }))
}

/// The old device's vault is gone, and so is that device.
pub(crate) fn forget_old(db: &Connection) -> Result<(), StoreError> {
    db.execute("update recovery set old_seed = null", [])?;
    Ok(())
}

/// There is no recovery vault any more.
pub(crate) fn remove(db: &Connection) -> Result<(), StoreError> {
    db.execute("delete from recovery", [])?;
    Ok(())
}

fn secret(bytes: Vec<u8>) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    let bytes = Zeroizing::new(bytes);
    bytes.as_slice().try_into().map(Zeroizing::new).map_err(|_| StoreError::Damaged)
}
