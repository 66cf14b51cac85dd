// The page's client of github.com/embedpush/push: one ES module, no
// dependency, no build step. It speaks push.json over a WebSocket.
//
//	import { connect } from "/push.js";
//
//	const push = connect("/ws", { login: async () => ({ user: "alice", token: await freshToken() }) });
//	push.onstate = (state, why) => (status.textContent = state + " " + why.reason);
//	push.on("order", (order) => show(order)); // what it returns is the program's ack
//	button.onclick = async () => {
//		const reply = await push.send("chat", "hello"); // what the server's handler answered
//	};
//
// It comes back by itself when the connection is lost, logs in again, and
// acknowledges what the server asked to have acknowledged. It keeps no queue:
// what cannot be sent now fails now, and what the server pushed while the page
// was away has not reached it (the server's receipt says so).
//
// Events are typed through JSDoc. Name them once and tsc or an editor checks
// every on, emit and send:
//
//	/** @typedef {{ order: { id: number, total: number }, notice: string }} In */
//	/** @typedef {{ chat: (line: string) => { at: number } }} Out */
//	/** @type {import("/push.js").Push<In, Out>} */
//	const push = connect("/ws");

/**
 * What the page claims to be. Which of it is believed is up to the server's
 * Authenticate.
 * @typedef {object} Login
 * @property {string} [user]
 * @property {string} [token]
 * @property {string} [device] an id of this device, of the page's own making
 * @property {string} [os]
 * @property {string} [version] the page's
 * @property {string[]} [tags]
 */

/**
 * A claim, or a function asked for one before every connection (a token that
 * is fresh each time). When it throws or rejects, the error goes to
 * console.warn and the client waits and tries again. null: connect without a
 * login.
 * @typedef {Login | null | (() => Login | null | Promise<Login | null>)} LoginSource
 */

/**
 * @typedef {object} Options
 * @property {LoginSource} [login] sent first on every connection. Absent: none;
 *   the server knows the page by the request's cookies and query, if at all.
 * @property {string | string[]} [protocols] WebSocket subprotocols. Absent: "push.json"; []: none.
 * @property {number} [minDelay] shortest wait before coming back, ms. Absent: 1000.
 * @property {number} [maxDelay] longest wait, ms, at least twice minDelay. Absent: 30000.
 * @property {number} [timeout] how long send waits for its answer, ms. Absent: 10000.
 */

/**
 * connecting: from the first step of an attempt until the socket is open and,
 * if there is a login, let in. open: as said. waiting: the connection was lost
 * and the client comes back after why.delay. closed: it does not come back by
 * itself; no timer and no listener is left.
 * @typedef {"connecting" | "open" | "waiting" | "closed"} State
 */

/**
 * Why the last connection ended: the WebSocket close code and the server's
 * text. 1006 with a text is the client's own finding (silence, a failed login
 * function). code 0: none has ended yet.
 * @typedef {{ code: number, reason: string, delay: number }} Why delay: ms until the next attempt, 0 if none is planned
 */

/**
 * What send and login reject with, by kind. refused: the server answered with
 * this error. timeout: it did not answer in time. gone: the connection ended
 * before the answer, the server may have acted (code is the close code).
 * offline: not connected, nothing was sent.
 * @typedef {Error & { kind: "refused" | "timeout" | "gone" | "offline", code?: number }} PushError
 */

/**
 * A frame as it came. With id the server wants an ack; with auto, from this
 * library and not from the handler. Bytes are a Uint8Array.
 * @template [T=any]
 * @typedef {{ event: string, data: T, id?: number, auto?: boolean }} Message
 */

/**
 * @template [T=any]
 * @typedef {(data: T, message: Message<T>) => any} Handler
 */

/**
 * A connection that comes back. In maps the events the server pushes to their
 * data, Out the events the page sends to functions from data to answer.
 *
 * Its methods need no `this`: they can be taken off and passed around.
 *
 * @template {Record<string, any>} [In=Record<string, any>]
 * @template {Record<string, (data: any) => any>} [Out=Record<string, (data: any) => any>]
 * @typedef {object} Push
 *
 * @property {<E extends keyof In & string>(event: E | "*", handler: Handler<In[E]>) => () => void} on
 *   Calls handler for each such event, "*" for every event, in the order of
 *   arrival, and returns the function that takes it off again. Adding a handler
 *   twice is adding it once.
 *
 *   Where the server wants the program's ack, what the handler returns, or
 *   resolves to, is the ack's data (undefined: an ack without data). With
 *   several handlers the ack goes out when all are done, with the first data
 *   among them. No ack goes out if one throws, rejects or returns NOACK, nor if
 *   there is no handler. Handlers of "*" have a say in this only where the event
 *   has no handler of its own. An error in a handler is given to reportError;
 *   it does not disturb the connection or other handlers.
 *
 * @property {<E extends keyof Out & string>(event: E, data?: Parameters<Out[E]>[0], timeout?: number) => Promise<Awaited<ReturnType<Out[E]>>>} send
 *   Sends and resolves with the answer of the server's handler. Rejects with a
 *   PushError; at once when not connected. A Uint8Array travels as base64, any
 *   other data as JSON.
 *
 * @property {<E extends keyof Out & string>(event: E, data?: Parameters<Out[E]>[0]) => boolean} emit
 *   Sends and wants no answer. False: not connected, nothing was sent.
 *
 * @property {(login: Login | (() => Login | Promise<Login>)) => Promise<{ user: string, conn: string }>} login
 *   Logs in with this claim from now on: over the open connection, or else by
 *   connecting at once. Rejects when that connection ends first (a refusal is
 *   gone with code 4401); the claim stays for the next one.
 *
 * @property {() => void} logout
 *   Gives the user up and forgets the claim. A user named by the URL or a
 *   cookie is back with the next connection.
 *
 * @property {() => void} connect
 *   Starts again when closed, or ends a wait. Otherwise does nothing. Connecting
 *   to what just refused the page, without a pause, is the caller's loop to avoid.
 *
 * @property {() => void} close
 *   Ends the connection for good: every timer and listener is gone, every
 *   unanswered send rejects. connect() starts again.
 *
 * @property {boolean} autoAck
 *   Whether the library answers pushes that want its ack. true at first.
 *
 * @property {((state: State, why: Why) => void) | null} onstate
 *   Called after every change of state.
 *
 * @property {State} state read only
 * @property {Why} why read only
 * @property {string} user the user the last login was let in as; "" without one. Read only.
 * @property {string} conn the server's id of this connection, told by a login; "" without one. Read only.
 */

/** What a handler returns to leave a push unacknowledged. */
export const NOACK = Symbol("no ack");

const SILENCE = 25e3; // without a frame for so long, the client asks
const ANSWER = 10e3; //  and without an answer for so long, it is alone
const OPENING = 20e3; // from the start of an attempt until open

// Close codes after which the client does not come back by itself. After any
// other it does: going away 1001, later 1013, too slow 4408, a lost network 1006.
const FINAL = [
	1002, 1003, 1007, 1008, 1009, // this client or page is faulty and would be again
	4401, // not let in
	4409, // replaced by a newer login
	4410, // kicked
];

/** @param {unknown} error */
function report(error) {
	typeof reportError === "function" ? reportError(error) : console.error(error);
}

/**
 * @param {PushError["kind"]} kind
 * @param {string} text
 * @param {number} [code]
 * @returns {PushError}
 */
function fail(kind, text, code) {
	return Object.assign(new Error(text), { kind, code });
}

/**
 * The members of a frame that carry data.
 * @param {any} data
 */
function body(data) {
	if (!(data instanceof Uint8Array)) return { data };
	let s = "";
	for (const b of data) s += String.fromCharCode(b);
	return { data: btoa(s), encoding: "base64" };
}

/**
 * @template T
 * @param {T | (() => T | Promise<T>)} source
 * @returns {Promise<T>}
 */
async function ask(source) {
	// @ts-ignore: T is never itself a function here
	return typeof source === "function" ? source() : source;
}

/**
 * Connects to url, relative to the page, and stays connected. A function is
 * asked for the url before every connection. The socket opens after the caller
 * has run on: handlers added in the same turn miss nothing.
 *
 * @template {Record<string, any>} [In=Record<string, any>]
 * @template {Record<string, (data: any) => any>} [Out=Record<string, (data: any) => any>]
 * @param {string | URL | (() => string | URL | Promise<string | URL>)} url
 * @param {Options} [options]
 * @returns {Push<In, Out>}
 */
export function connect(url, { login, protocols = "push.json", minDelay = 1e3, maxDelay = 3e4, timeout = 1e4 } = {}) {
	/** @type {Map<string, Set<Handler>>} */
	const handlers = new Map();
	/** @typedef {(error?: PushError | null, value?: any) => void} Done */
	/** @type {Map<number, Done>} sends without an answer yet */
	const pending = new Map();
	/** @type {Done[]} calls of login without an answer yet; answers come in order */
	let logins = [];
	let lastID = 0;

	/** @type {State} */
	let state = "closed";
	/** @type {Why} */
	let why = { code: 0, reason: "", delay: 0 };
	let user = "";
	let conn = "";

	/** @type {WebSocket | null} */
	let socket = null; //   null between two
	let attempt = 0; //     raised by every start and end: who holds an older number is late
	let pinged = false; //  a ping is unanswered
	let since = 0; //       when it last became open
	let waits = 0; //       in a row
	/** @type {any} */
	let timer; //           the only one: opening, silence, answer or wait, by state

	/**
	 * @param {number} ms
	 * @param {() => void} f
	 */
	function alarm(ms, f) {
		clearTimeout(timer);
		timer = setTimeout(f, ms);
	}

	/** @param {State} to */
	function enter(to) {
		state = to;
		try {
			push.onstate?.(state, why);
		} catch (error) {
			report(error);
		}
	}

	/** @param {"addEventListener" | "removeEventListener"} how */
	function listen(how) {
		globalThis[how]?.("online", wake);
		globalThis.document?.[how]("visibilitychange", wake);
	}

	async function start() {
		const mine = ++attempt;
		alarm(OPENING, () => end(1006, "opening timed out"));
		listen("addEventListener");
		why = { ...why, delay: 0 };
		enter("connecting");
		try {
			const [to, claim] = await Promise.all([ask(url), ask(login)]);
			if (mine !== attempt) return;
			const ws = new WebSocket(new URL(to, globalThis.location?.href).href.replace(/^http/, "ws"), protocols);
			socket = ws;
			ws.onopen = () => (claim ? tell(ws, { login: claim }) : welcome({ user: "", conn: "" }));
			ws.onclose = (e) => end(e.code, e.reason);
			ws.onmessage = (e) => {
				try {
					receive(ws, e.data);
				} catch (error) {
					report(error);
				}
			};
		} catch (error) {
			if (mine !== attempt) return;
			console.warn(error);
			end(1006, String(error));
		}
	}

	/** @param {{ user: string, conn: string }} answer */
	function welcome(answer) {
		user = login ? answer.user : ""; // logout may have overtaken the answer
		conn = answer.conn;
		logins.shift()?.(null, answer);
		if (state === "open") return;
		since = Date.now();
		heard();
		enter("open");
	}

	/**
	 * Lets the socket go without waiting for its close event, which on a dead
	 * network may be a minute away.
	 * @param {number} code
	 * @param {string} reason
	 */
	function drop(code, reason) {
		attempt++;
		clearTimeout(timer);
		if (socket) {
			socket.onopen = socket.onmessage = socket.onclose = null;
			socket.close(1000);
		}
		socket = null;
		user = conn = "";
		const orphans = [...pending.values(), ...logins];
		logins = [];
		for (const done of orphans) done(fail("gone", reason || "connection lost", code));
	}

	/**
	 * @param {number} code
	 * @param {string} reason
	 */
	function end(code, reason, final = FINAL.includes(code)) {
		drop(code, reason);
		// Being let in proves little: a server that takes connections and
		// drops them must not be asked ever faster. Having stayed does.
		if (final || (since && Date.now() - since > maxDelay)) waits = 0;
		since = 0;
		why = { code, reason, delay: 0 };
		if (final) {
			listen("removeEventListener");
			return enter("closed");
		}
		if (code === 1013) waits = Math.max(waits, 3);
		why.delay = Math.round((Math.min(maxDelay, minDelay * 2 ** ++waits) * (1 + Math.random())) / 2);
		alarm(why.delay, start);
		enter("waiting");
	}

	/**
	 * The browser is back online, or the page is back in sight: timers may have
	 * slept. 1013 is the server's wish to be left alone, and holds.
	 * @param {Event} e
	 */
	function wake(e) {
		if (e.type !== "online" && document.hidden) return;
		if (state === "waiting" && why.code !== 1013) start();
		if (state === "open" && !pinged) ping();
	}

	function heard() {
		pinged = false;
		alarm(SILENCE, ping);
	}

	function ping() {
		pinged = true;
		alarm(ANSWER, () => end(1006, "silence"));
		tell(socket, { ping: 1 });
	}

	/**
	 * Reports whether the frame was handed to ws. An ack goes to the ws that
	 * asked, which close() has made unwilling if it is no longer the one.
	 * @param {WebSocket | null} ws
	 * @param {object} frame
	 */
	function tell(ws, frame) {
		if (ws?.readyState !== 1) return false;
		ws.send(JSON.stringify(frame));
		return true;
	}

	/**
	 * @param {WebSocket} ws
	 * @param {string} text
	 */
	function receive(ws, text) {
		if (state === "open") heard();
		const m = JSON.parse(text);
		if (m.encoding === "base64") m.data = Uint8Array.from(atob(m.data), (c) => c.charCodeAt(0));
		if (m.event !== undefined) dispatch(ws, m);
		else if (m.ack) pending.get(m.ack)?.(m.error != null ? fail("refused", m.error) : null, m.data);
		else if (m.login) welcome(m.login);
	}

	/**
	 * @param {WebSocket} ws
	 * @param {Message} m
	 */
	function dispatch(ws, m) {
		if (m.auto && push.autoAck) tell(ws, { ack: m.id });
		/** @param {Handler} handler */
		const run = async (handler) => {
			try {
				return await handler(m.data, m);
			} catch (error) {
				report(error);
				return NOACK;
			}
		};
		// Both lists are taken before the first handler runs: it may add and remove.
		const [own, any] = [m.event, "*"].map((name) => [...(handlers.get(name) ?? [])]);
		const ofOwn = own.map(run);
		const ofAny = m.event === "*" ? [] : any.map(run);
		const results = own.length ? ofOwn : ofAny;
		if (m.id === undefined || m.auto || !results.length) return;
		Promise.all(results)
			.then((all) => all.includes(NOACK) || tell(ws, { ack: m.id, ...body(all.find((v) => v !== undefined)) }))
			.catch(report); // what was returned is no JSON
	}

	/** @type {Push<any, any>} */
	const push = {
		autoAck: true,
		onstate: null,
		get state() {
			return state;
		},
		get why() {
			return why;
		},
		get user() {
			return user;
		},
		get conn() {
			return conn;
		},

		on(event, handler) {
			const set = handlers.get(event) ?? new Set();
			handlers.set(event, set.add(handler));
			return () => {
				set.delete(handler);
			};
		},

		emit: (event, data) => tell(socket, { event, ...body(data) }),

		send: (event, data, wait = timeout) =>
			new Promise((resolve, reject) => {
				const id = ++lastID;
				if (!tell(socket, { event, ...body(data), id })) throw fail("offline", "not connected");
				const late = setTimeout(() => done(fail("timeout", "no answer to " + event)), wait);
				/** @type {Done} */
				const done = (error, value) => {
					clearTimeout(late);
					pending.delete(id);
					error ? reject(error) : resolve(value);
				};
				pending.set(id, done);
			}),

		async login(source) {
			login = source;
			const open = state === "open" && socket;
			const claim = open && (await ask(source));
			return new Promise((resolve, reject) => {
				if (open && !tell(open, { login: claim || {} })) throw fail("offline", "not connected");
				if (!open) drop(1006, "new login");
				logins.push((error, value) => (error ? reject(error) : resolve(value)));
				if (!open) start();
			});
		},

		logout() {
			login = null;
			user = "";
			tell(socket, { logout: true });
			if (state !== "connecting") return;
			drop(1006, "logout"); // this attempt may hold the claim already
			start();
		},

		connect() {
			if (state === "closed" || state === "waiting") start();
		},

		close() {
			if (state !== "closed") end(1000, "closed by the page", true);
		},
	};
	start();
	return push;
}
