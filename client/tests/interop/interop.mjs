// Another program than the SDK, on other libraries (those that the Totals stack uses): opens what the
// SDK has sealed, seals something itself, and checks the published vectors on the way.
//
// It is given one JSON object on standard input and answers with one on standard output; what is wrong
// ends it with a message. The test that talks to it is client/tests/promises/interop.rs.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gcm } from '@noble/ciphers/aes.js';
import { xchacha20poly1305 } from '@noble/ciphers/chacha.js';
import { randomBytes } from '@noble/ciphers/utils.js';
import { ed25519, x25519 } from '@noble/curves/ed25519.js';
import { argon2id } from '@noble/hashes/argon2.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { bytesToHex, concatBytes, hexToBytes, utf8ToBytes } from '@noble/hashes/utils.js';

const text = (bytes) => new TextDecoder('utf-8', { fatal: true }).decode(bytes);
const base64 = (bytes) => Buffer.from(bytes).toString('base64');
const unbase64 = (chars) => new Uint8Array(Buffer.from(chars, 'base64'));

// --- the formats of the Totals app ----------------------------------------------------------------

const seal = (key, plaintext, nonce = randomBytes(12)) =>
  concatBytes(nonce, gcm(key, nonce).encrypt(utf8ToBytes(plaintext)));

const open = (key, blob) => text(gcm(key, blob.subarray(0, 12)).decrypt(blob.subarray(12)));

const pairKey = (seed, peer) =>
  x25519.getSharedSecret(ed25519.utils.toMontgomerySecret(seed), ed25519.utils.toMontgomery(peer));

const kek = (pin, salt, { memoryKb, iterations, parallelism }) =>
  argon2id(utf8ToBytes(pin), salt, { m: memoryKb, t: iterations, p: parallelism, dkLen: 32 });

const openVault = ({ version, salt, kdfParams, encryptedBlob }, pin) => {
  assert.equal(version, 1);
  return JSON.parse(open(kek(pin, unbase64(salt), kdfParams), unbase64(encryptedBlob)));
};

const sealVault = (plaintext, pin, kdfParams) => {
  const salt = randomBytes(16);
  const blob = seal(kek(pin, salt, kdfParams), plaintext);
  return { version: 1, salt: base64(salt), kdfParams, encryptedBlob: base64(blob) };
};

// --- native bodies --------------------------------------------------------------------------------

const openBody = ({ body, epoch_key, log, sender, aad }) => {
  const bytes = hexToBytes(body);
  assert.equal(bytes[0], 1, 'the suite');
  const [scopeAndEpoch, nonce, commitment] = [
    bytes.subarray(1, 21),
    bytes.subarray(21, 45),
    bytes.subarray(45, 77),
  ];
  const info = concatBytes(
    utf8ToBytes('sealwire body v1'),
    hexToBytes(log),
    scopeAndEpoch,
    hexToBytes(sender),
  );
  const derived = hkdf(sha256, hexToBytes(epoch_key), nonce, info, 64);
  assert.deepEqual(derived.subarray(32), commitment, 'the commitment');
  const cipher = xchacha20poly1305(derived.subarray(0, 32), nonce, hexToBytes(aad));
  const padded = cipher.decrypt(bytes.subarray(77));
  const length = new DataView(padded.buffer, padded.byteOffset).getUint32(0);
  return padded.subarray(4, 4 + length);
};

// --- the vectors ----------------------------------------------------------------------------------

const cases = (directory, name) =>
  JSON.parse(readFileSync(join(directory, name), 'utf8')).cases;

const checkVectors = (directory) => {
  const [pair, group] = cases(directory, 'totals_blobs.json');
  const [ours, theirs] = [hexToBytes(pair.sender_seed), hexToBytes(pair.recipient_seed)];
  assert.equal(bytesToHex(ed25519.getPublicKey(ours)), pair.sender);
  assert.equal(bytesToHex(ed25519.getPublicKey(theirs)), pair.recipient);
  assert.equal(bytesToHex(ed25519.utils.toMontgomery(hexToBytes(pair.sender))), pair.sender_agrees);
  assert.equal(bytesToHex(pairKey(ours, hexToBytes(pair.recipient))), pair.key);
  assert.equal(bytesToHex(pairKey(theirs, hexToBytes(pair.sender))), pair.key);
  const signed = ed25519.sign(hexToBytes(pair.challenge), ours);
  assert.equal(bytesToHex(signed), pair.challenge_signed_by_sender);
  for (const { key, nonce, plaintext, blob } of [pair, group]) {
    assert.equal(open(hexToBytes(key), hexToBytes(blob)), plaintext);
    assert.equal(bytesToHex(seal(hexToBytes(key), plaintext, hexToBytes(nonce))), blob);
  }
  const [vault, weak] = cases(directory, 'totals_recovery.json');
  assert.equal(bytesToHex(kek(weak.pin, unbase64(weak.salt), weak.kdfParams)), weak.kek);
  const full = hexToBytes(vault.kek);
  assert.equal(open(full, unbase64(vault.vault.encryptedBlob)), vault.plaintext);
  for (const body of cases(directory, 'bodies.json')) {
    assert.equal(bytesToHex(openBody(body)), body.content);
  }
};

// --- the conversation with the SDK ----------------------------------------------------------------

const asked = JSON.parse(readFileSync(0, 'utf8'));
checkVectors(asked.vectors);
const seed = hexToBytes(asked.seed);
const group = hexToBytes(asked.group_key);
const pair = pairKey(seed, hexToBytes(asked.peer));
const weak = { memoryKb: 1024, iterations: 1, parallelism: 1 };
const answer = {
  // What the SDK has sealed, as this program reads and writes it.
  to_group: JSON.stringify(JSON.parse(open(group, hexToBytes(asked.to_group)))),
  to_pair: JSON.stringify(JSON.parse(open(pair, hexToBytes(asked.to_pair)))),
  vault: JSON.stringify(openVault(asked.vault, asked.pin)),
  // What this program seals.
  from_group: bytesToHex(seal(group, asked.message)).toUpperCase(),
  from_pair: bytesToHex(seal(pair, asked.message)),
  from_vault: sealVault(asked.contents, asked.pin, weak),
};
process.stdout.write(JSON.stringify(answer));
