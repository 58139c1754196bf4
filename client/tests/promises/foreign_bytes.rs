//! Whatever bytes come from others, they are read or refused: the checks of the fuzz targets, with
//! random bytes and with true ones that were damaged.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use sealwire_client::sync::{SyncError, snapshot};
use sealwire_client::vault::SnapshotError;

#[path = "../../fuzz/src/checks.rs"]
#[expect(unreachable_pub, reason = "it is public where the fuzz targets are")]
mod checks;
#[path = "../../fuzz/src/seeds.rs"]
#[expect(unreachable_pub, reason = "it is public where the fuzz targets are")]
mod seeds;

fn true_bytes(target: &str) -> Vec<Vec<u8>> {
    seeds::of(target, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/vectors"))
}

/// One byte is another, some are missing, or some stand twice.
fn damage(mut bytes: Vec<u8>, at: Index, length: usize, how: u8, with: u8) -> Vec<u8> {
    if bytes.is_empty() {
        return bytes;
    }
    let begin = at.index(bytes.len());
    let end = bytes.len().min(begin + length);
    match how % 3 {
        0 => bytes[begin] = with,
        1 => drop(bytes.drain(begin..end)),
        _ => {
            let twice = bytes[begin..end].to_vec();
            bytes.splice(begin..begin, twice);
        }
    }
    bytes
}

#[test]
fn what_is_true_is_read() {
    for (target, check) in seeds::CHECKS {
        for bytes in true_bytes(target) {
            check(&bytes);
        }
    }
}

#[test]
fn a_true_state_is_read_whole_packed_and_unpacked() {
    let state = seeds::state();
    assert_eq!(snapshot::check_unpacked(&state), Ok(1));
    assert_eq!(snapshot::check(&seeds::packed(&state), state.len() as u64), Ok(1));
    let short = snapshot::check(&seeds::packed(&state), state.len() as u64 - 1);
    assert_eq!(short, Err(SyncError::Vault(SnapshotError::TooLong.into())));
    let boxes = true_bytes("boxes").remove(0);
    assert_eq!(snapshot::boxes(&boxes).map(|boxes| boxes.len()), Some(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_damaged_is_read_or_refused(
        pick in any::<Index>(),
        damages in proptest::collection::vec(
            (any::<Index>(), 1usize..40, any::<u8>(), any::<u8>()),
            1..6,
        ),
    ) {
        for (target, check) in seeds::CHECKS {
            let all = true_bytes(target);
            let bytes = all[pick.index(all.len())].clone();
            let damaged = damages.iter().fold(bytes, |bytes, (at, length, how, with)| {
                damage(bytes, *at, *length, *how, *with)
            });
            check(&damaged);
        }
    }

    #[test]
    fn what_is_noise_is_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        text in "\\PC{0,80}",
    ) {
        for (_, check) in seeds::CHECKS {
            check(&bytes);
            check(text.as_bytes());
        }
    }

    #[test]
    fn what_looks_like_an_address_or_an_amount_is_read_or_refused(
        address in "(wss|https|ws|http)://[a-zA-Z0-9.\\-\\[\\]:ä%]{1,40}(:[0-9]{1,5})?(/[a-z é%#?]{0,300})?",
        amount in "-?[0-9]{1,20}([.,][0-9]{0,5})?",
    ) {
        checks::typed(address.as_bytes());
        checks::typed(amount.as_bytes());
    }
}
