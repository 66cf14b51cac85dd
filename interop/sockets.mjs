// Sockets of the clients from npm as tests use them: opened, asked, listened
// to, compared, and closed with their test.

import assert from "node:assert/strict";

import { until, WAIT, within } from "./harness.mjs";
import { dial } from "./sioclients.mjs";

let names = 0;
/** A name that nobody else has. */
export const fresh = (what) => `${what}${++names}`;

/**
 * A client's socket that begins to connect to a server, and is closed with the
 * test. By socket.tab the server knows its requests.
 */
export function start(t, url, client, way, { query = {}, ...options } = {}) {
	const tab = fresh("tab");
	const socket = dial(url, client, way, { timeout: WAIT, query: { tab, ...query }, ...options });
	t.after(() => {
		socket.disconnect();
		(socket.io._close ?? socket.io.close).call(socket.io); // which the refused need
	});
	return Object.assign(socket, { tab });
}

/** Waits until the socket is connected. */
export function connected(socket, what = "it is connected") {
	const done = new Promise((resolve, reject) => {
		if (socket.connected) resolve();
		socket.once("connect", resolve);
		for (const event of ["connect_error", "error"]) socket.once(event, (e) => reject(new Error(`${event}: ${e?.message ?? e}`)));
	});
	return within(what, done).then(() => socket);
}

/** Events of a name as they come: all of them are in .all, next() waits for one. */
export class Inbox {
	all = [];
	#read = 0;
	#wake = () => {};

	constructor(socket, event) {
		this.event = event;
		socket.on(event, (...args) => {
			this.all.push(args);
			this.#wake();
		});
	}

	async next() {
		await this.length(this.#read + 1);
		return this.all[this.#read++];
	}

	/** Waits until there are n. */
	async length(n) {
		const done = new Promise((resolve) => {
			this.#wake = () => this.all.length >= n && resolve();
			this.#wake();
		});
		await within(`${n} events ${this.event} have come`, done).catch((e) => assert.fail(`${e.message}, there are ${this.all.length}`));
	}
}

/** Emits, and waits for the arguments of the ack. */
export const ask = (socket, event, ...args) => within(`${event} is answered`, new Promise((resolve) => socket.emit(event, ...args, (...answer) => resolve(answer))));

/** Waits for an event that comes once. */
export const once = (socket, event) => within(`there is an event ${event}`, new Promise((resolve) => socket.once(event, (...args) => resolve(args))));

/** Waits until the server refuses, and returns the text. */
export async function refusal(socket, old) {
	const [why] = await once(socket, old ? "error" : "connect_error");
	if (old) assert.equal(typeof why, "string", `the error is ${JSON.stringify(why)}`);
	return old ? why : why.message;
}

/** Another namespace over the same connection, with the same claims. */
export const beside = (socket, namespace, { old }, claims = {}) => socket.io.socket(namespace, old ? { query: claims } : { auth: claims });

/** Waits until the socket's connection is a WebSocket. */
export const upgraded = (socket) => until("it is a WebSocket", () => socket.io.engine.transport.name === "websocket");

/** Bytes that no text encoding leaves alone. */
export const bytes = (n) => Buffer.from({ length: n }, (_, i) => (i * 7 + (i >> 8)) % 256);

/** Compares, and takes Buffer, Uint8Array and ArrayBuffer for the same. */
export function same(got, want, what) {
	const plain = (v) => {
		if (v instanceof ArrayBuffer || ArrayBuffer.isView(v)) return { bytes: Buffer.from(v).toString("base64") };
		if (Array.isArray(v)) return v.map(plain);
		if (v && typeof v === "object") return Object.fromEntries(Object.entries(v).map(([k, v]) => [k, plain(v)]));
		return v;
	};
	assert.deepEqual(plain(got), plain(want), what);
}

export const inOrder = (inbox, n) => {
	const got = inbox.all.map(([i]) => i);
	const wrong = got.findIndex((v, i) => v !== i);
	assert.equal(wrong, -1, `event ${wrong} of ${got.length} is number ${got[wrong]}`);
	assert.equal(got.length, n);
};
