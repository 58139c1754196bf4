//! A snapshot's state, packed and unpacked. What must hold stands in `checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sealwire_client_fuzz::checks::snapshot(bytes));
