// socket.io-client as it comes from npm against three nodes of push behind a
// proxy that keeps nobody with a node: each poll, each POST and each upgrade
// goes to the next. Run it with interop/run. Each test's name is a promise, made
// to each client over each transport.

import assert from "node:assert/strict";
import { after, before, describe, test as nodeTest } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { startSioserver, test as alone, until, WAIT, within } from "./harness.mjs";
import { clients, ways } from "./sioclients.mjs";
import { ask, beside, bytes, connected, fresh, inOrder, Inbox, once, refusal, same, start as begin, upgraded } from "./sockets.mjs";

const nodes = ["a", "b", "c"];

let server;
before(async () => {
	server = await startCluster();
});
after(async () => {
	if (process.env.SAY) console.log(server.said());
	await server?.stop();
	await server?.stop("SIGKILL");
});

/** Three nodes and the proxy, whose address is the url. */
async function startCluster(...flags) {
	const cluster = await startSioserver(undefined, "-nodes", String(nodes.length), ...flags);
	/** Pushes from a node, and returns the receipt. */
	cluster.pushFrom = async (node, query, data) => (await cluster.node(node).push(query, data)).receipt;
	return cluster;
}

/** The clients that are tried: the oldest, the newest. */
const tried = clients.filter(({ name }) => ["2.3.0", "4.8.4"].includes(name));
const called = (client, way) => `${client.name} over ${way.length > 1 ? "both transports" : way[0]}`;

/** A client's socket that begins to connect through the proxy of a cluster. */
const start = (t, client, way, { from = server, ...options } = {}) => begin(t, from.url, client, way, options);

/**
 * A socket that is connected, which each node knows if it is a user's.
 * socket.node is the node that holds its session.
 */
async function open(t, client, way, options) {
	const socket = start(t, client, way, options);
	const welcome = once(socket, "welcome");
	welcome.catch(() => {}); // connected fails first
	await connected(socket);
	const [{ user, node }] = await welcome;
	if (user) await known({ user }, node);
	return Object.assign(socket, { node });
}

/** Waits until every node knows, which takes moments, that a user is on node. */
async function known(query, node) {
	for (const from of nodes) {
		await until(`${from} knows ${JSON.stringify(query)}`, async () => {
			const { deliveries = [] } = await server.pushFrom(from, { ...query, event: "x" }, 1);
			return deliveries.some((d) => d.node === node);
		});
	}
}

/** Sockets that are connected, one on each of n nodes. */
async function apart(t, client, way, n, options) {
	const found = new Map();
	for (let tries = 0; found.size < n; tries++) {
		assert.ok(tries < 50, `${tries} sessions are on ${[...found.keys()]} only`);
		const socket = await open(t, client, way, options);
		if (found.has(socket.node)) socket.disconnect();
		else found.set(socket.node, socket);
	}
	return [...found.values()];
}

/** Another node, or two. */
const others = (node) => nodes.filter((other) => other !== node);

/** How many requests of a socket came to each node, by what they are. */
const requests = (socket) => Promise.all(nodes.map((node) => server.node(node).ask("GET", "/requests", { tab: socket.tab })));

const sum = (seen, what) => seen.reduce((n, at) => n + (at[what] ?? 0), 0);

describe("socket.io-client behind a proxy over three nodes", { concurrency: 3 }, () => {
	for (const client of tried) {
		for (const way of ways) {
			describe(called(client, way), { concurrency: 3 }, () => {
				const test = (name, run) => nodeTest(name, { timeout: 60_000 }, run);
				promises(test, client, way);
				if (way[0] === "polling") polls(test, client, way);
			});
		}
	}
});

function promises(test, client, way) {
	const { old } = client;

	test("hello comes each second, once, from the nodes in turn", async (t) => {
		const hello = new Inbox(start(t, client, way), "hello");
		await hello.length(4);
		const [[first]] = hello.all;
		for (const [i, [{ x, node }]] of hello.all.entries()) {
			assert.equal(x, (first.x + i) % 100);
			assert.equal(node, (first.node + i) % nodes.length);
		}
	});

	test("it is logged in on one node, and online on all", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		for (const node of nodes) {
			const { sent, deliveries } = await server.pushFrom(node, { user, event: "x" }, 1);
			assert.equal(sent, 1, node);
			assert.deepEqual([deliveries[0].user, deliveries[0].node], [user, socket.node]);
		}
	});

	test("a wrong password is refused with the server's text, and a right one is not", async (t) => {
		for (let i = 0; i < nodes.length; i++) {
			const user = fresh("user");
			const socket = start(t, client, way, { claims: { user, token: "wrong" } });
			assert.equal(await refusal(socket, old), "wrong password");
			assert.ok(!socket.connected);
			for (const node of nodes) assert.deepEqual((await server.pushFrom(node, { user, event: "x" }, 1)).offline, [user]);
			if (old) continue; // it cannot ask again on the same connection
			socket.auth = { user, token: "right" };
			socket.connect();
			await connected(socket);
		}
	});

	test("what it sends is acked and comes back, bytes as bytes and large ones too", async (t) => {
		const socket = await open(t, client, way);
		const echo = new Inbox(socket, "echo");
		for (const args of [["one", { a: [1, null] }, true], [bytes(1)], ["a", bytes(256), { b: "grüße 🙂" }, bytes(1000)], [bytes(200_000)], ["x".repeat(200_000)]]) {
			same(await ask(socket, "echo", ...args), args, "the ack");
			same(await echo.next(), args, "the event");
		}
	});

	test("a push from any node is acked by the page's callback, and its reply is in the receipt", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const asked = new Inbox(socket, "ask");
		for (const node of nodes) {
			for (const [ack, reply, want] of [
				["biz", [{ got: [1] }], { got: [1] }],
				["auto", ["text"], "text"],
				["biz", [1, "two", null], [1, "two", null]],
			]) {
				const pushed = server.pushFrom(node, { user, event: "ask", ack }, { n: 1 });
				const [data, answer] = await asked.next();
				assert.deepEqual(data, { n: 1 });
				answer(...reply);
				const { acked, deliveries } = await pushed;
				assert.equal(acked, 1, node);
				assert.deepEqual([deliveries[0].node, deliveries[0].reply], [socket.node, want]);
			}
		}
	});

	test("bytes pushed from any node are acked with bytes", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const asked = new Inbox(socket, "ask");
		for (const node of nodes) {
			for (const n of [1, 50_000]) {
				const want = bytes(n);
				const pushed = server.pushFrom(node, { user, event: "ask", ack: "biz", as: "args" }, ["base64:" + want.toString("base64"), "more"]);
				const [got, more, answer] = await asked.next();
				same([got, more], [want, "more"]);
				answer(got);
				const { acked, deliveries } = await pushed;
				assert.equal(acked, 1, node);
				assert.equal(deliveries[0].reply, want.toString("base64"));
			}
		}
	});

	test("a push from another node that the page does not call back for times out, and the connection lives", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const { failed, deliveries } = await server.pushFrom(others(socket.node)[0], { user, event: "ask", ack: "biz", wait: "2s" }, 1);
		assert.equal(failed, 1);
		assert.deepEqual(deliveries.map(({ node, status }) => [node, status]), [[socket.node, "timeout"]]);
		assert.deepEqual(await ask(socket, "echo", 1), [1]);
	});

	test("a push to a room reaches who is in it once, on whichever nodes they and it are", async (t) => {
		const room = fresh("room");
		const sockets = await apart(t, client, way, nodes.length);
		const news = sockets.map((socket) => new Inbox(socket, "news"));
		const numbers = () => news.map((inbox) => inbox.all.map(([n]) => n));
		const [one, two, out] = sockets;
		await Promise.all([one, two].map((socket) => ask(socket, "join", room)));
		// With an ack each node says who was there; room is where the directory
		// knows of it from, which takes moments.
		const there = (node, n) => until(`node ${node} knows that ${n} are in the room`, async () => (await server.pushFrom(node, { room, event: "there?", ack: "biz", wait: "1s" }, 1)).acked === n);
		for (const socket of sockets) socket.on("there?", (_, answer) => answer());
		for (const node of nodes) await there(node, 2);

		for (const [i, node] of nodes.entries()) await server.pushFrom(node, { room, event: "news" }, i);
		await ask(out, "room", { room, event: "news", data: 3 }); // from a page that is not in it
		for (const inbox of [news[0], news[1]]) await inbox.length(4);
		await ask(one, "leave", room);
		for (const node of nodes) await there(node, 1);
		await ask(out, "room", { room, event: "news", data: 4 });
		await news[1].length(5);
		for (const socket of sockets) await ask(socket, "echo"); // behind which nothing of it comes any more
		assert.deepEqual(numbers().map((got) => got.toSorted()), [[0, 1, 2, 3], [0, 1, 2, 3, 4], []]);
	});

	test("a push to a user reaches two tabs on two nodes, and either may ask for it", async (t) => {
		const user = fresh("user");
		const tabs = await apart(t, client, way, 2, { claims: { user } });
		for (const node of nodes) await until(`${node} knows of these two only`, async () => (await server.pushFrom(node, { user, event: "x" }, 1)).targets === 2);
		const orders = tabs.map((socket) => {
			const inbox = new Inbox(socket, "order");
			socket.on("order", (_, answer) => answer(socket.node));
			return inbox;
		});
		const want = tabs.map(({ node }) => node).toSorted();
		const check = ({ acked, deliveries }) => {
			assert.equal(acked, 2, JSON.stringify(deliveries));
			assert.deepEqual(deliveries.map(({ node }) => node).toSorted(), want);
			for (const { node, reply } of deliveries) assert.equal(reply, node);
		};
		for (const node of nodes) check(await server.pushFrom(node, { user, event: "order", ack: "biz" }, node));
		for (const socket of tabs) check((await ask(socket, "push-user", { user, event: "order", data: "page" }))[0]);
		for (const inbox of orders) assert.deepEqual(inbox.all.map(([data]) => data), [...nodes, "page", "page"]);
	});

	test("who is kicked from another node is told so and does not come back", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const [gone, back] = [once(socket, "disconnect"), new Inbox(socket, "connect")];
		const [other] = others(socket.node);
		assert.equal(await server.node(other).ask("POST", "/kick", { user, text: "bye" }), 1);
		assert.equal((await gone)[0], "io server disconnect");
		await until("it ended", async () => (await server.node(socket.node).ask("GET", "/ended", { user })).includes("kicked"));
		await sleep(1000);
		assert.equal(back.all.length, 0);
		for (const node of nodes) assert.deepEqual((await server.pushFrom(node, { user, event: "x" }, 1)).offline, [user]);
	});

	test("namespaces share its connection, are pushed to from every node, and are apart", async (t) => {
		const user = fresh("user");
		const root = await open(t, client, way, { claims: { user } });
		const [custom, chat] = ["/custom", "/chat"].map((name) => beside(root, name, client, { user }));
		const welcomes = await Promise.all([custom, chat].map((socket) => once(socket, "welcome")));
		assert.deepEqual(welcomes.map(([w]) => [w.user, w.namespace, w.node]), [[user, "/custom", root.node], [user, "/chat", root.node]]);
		for (const namespace of ["/custom", "/chat"]) await known({ user, namespace }, root.node);
		const sockets = [root, custom, chat];
		const inboxes = sockets.map((socket) => new Inbox(socket, "note"));
		sockets.forEach((socket, i) => socket.on("note", (_, answer) => answer(i)));
		for (const node of nodes) {
			for (const [i, namespace] of ["/", "/custom", "/chat"].entries()) {
				const { acked, deliveries } = await server.pushFrom(node, { user, namespace, event: "note", ack: "biz" }, namespace);
				assert.deepEqual([acked, deliveries.map((d) => d.reply)], [1, [i]], `${namespace} from ${node}`);
			}
		}
		assert.deepEqual(inboxes.map((inbox) => inbox.all.map(([name]) => name)), ["/", "/custom", "/chat"].map((name) => nodes.map(() => name)));
		for (const socket of sockets) same(await ask(socket, "echo", "a", bytes(5)), ["a", bytes(5)]);

		chat.disconnect();
		for (const node of nodes) {
			await until(`${node} knows that it left /chat`, async () => (await server.pushFrom(node, { user, namespace: "/chat", event: "note" }, 1)).targets === 0);
			assert.equal((await server.pushFrom(node, { user, event: "x" }, 1)).sent, 1);
		}
		for (const [name, why] of [["/unknown", "Invalid namespace"], ["/private", "not you"]]) {
			assert.equal(await refusal(beside(root, name, client, { user }), old), why);
		}
		assert.deepEqual(await ask(root, "echo", 1), [1]);
	});

	test("400 events arrive in order both ways, and pushes from every node once, whatever node each request goes to", async (t) => {
		const user = fresh("user");
		const socket = start(t, client, way, { claims: { user } });
		const [inbox, asked] = [new Inbox(socket, "n"), new Inbox(socket, "ask")];
		socket.on("ask", (n, answer) => answer(n));
		socket.emit("trickle", null);
		let sent = 0;
		let before = way.length > 1 ? -1 : 0; // events that had come when it became a WebSocket
		const pushed = [];
		for (const end = Date.now() + 2 * WAIT; sent < 400 || before < 0 || inbox.all.length < Math.max(400, before + 100); ) {
			if (sent % 20 === 0) pushed.push(server.pushFrom(nodes[pushed.length % nodes.length], { user, event: "ask", ack: "biz" }, pushed.length));
			socket.emit("n", sent++);
			if (before < 0 && socket.io.engine.transport.name === "websocket") before = inbox.all.length;
			assert.ok(Date.now() < end, `after ${sent} sent and ${inbox.all.length} come it is on ${socket.io.engine.transport.name}`);
			if (sent % 2 === 0) await sleep(1);
		}
		const [trickled] = await ask(socket, "enough", null);
		assert.deepEqual(await ask(socket, "count", null), [{ count: sent, ordered: true }]);
		await inbox.length(trickled);
		inOrder(inbox, trickled);

		const acked = [];
		for (const { deliveries = [], offline } of await Promise.all(pushed)) {
			if (offline) continue; // it was not there yet, or the node had not heard of it
			assert.deepEqual(deliveries.map(({ status }) => status), ["acked"]);
			acked.push(deliveries[0].reply);
		}
		assert.ok(acked.length > 0);
		const saw = asked.all.map(([n]) => n).toSorted((a, b) => a - b);
		assert.deepEqual(saw, acked.toSorted((a, b) => a - b));

		const seen = await requests(socket);
		if (way[0] === "websocket") {
			assert.equal(sum(seen, "GET websocket"), 1);
			assert.equal(sum(seen, "GET polling"), 0);
		} else if (way.length === 1) {
			for (const [i, at] of seen.entries()) assert.ok(at["GET polling"] > 0, `node ${nodes[i]} saw ${JSON.stringify(at)}`);
		}
	});

	test("it says goodbye, and no node knows it any more", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		socket.disconnect();
		await until("it ended", async () => (await server.node(socket.node).ask("GET", "/ended", { user })).includes("client"));
		for (const node of nodes) await until(`${node} knows`, async () => (await server.pushFrom(node, { user, event: "x" }, 1)).targets === 0);
	});
}

function polls(test, client, way) {
	test("its session is on one node, and its requests and its upgrade may go to any", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const everywhere = async () => (await requests(socket)).every((at) => (at["GET polling"] ?? 0) + (at["POST polling text/plain"] ?? 0) > 0);
		if (way.length === 1) await until("each node was asked", async () => (await ask(socket, "echo", 1)) && everywhere());
		else await upgraded(socket);
		assert.deepEqual(await ask(socket, "echo", 1), [1]);
		assert.equal(sum(await requests(socket), "GET websocket"), way.length - 1);
		for (const node of nodes) {
			const { sent, deliveries } = await server.pushFrom(node, { user, event: "x" }, 1);
			assert.equal(sent, 1, node);
			assert.equal(deliveries[0].node, socket.node);
			assert.deepEqual(await server.node(node).ask("GET", "/ended", { user }), []);
		}
	});

	if (way.length > 1) {
		test("an upgrade through a node that does not hold the session is one", async (t) => {
			const through = async (socket) => nodes[(await requests(socket)).findIndex((at) => at["GET websocket"] === 1)];
			const user = fresh("user");
			let socket;
			for (let tries = 0; !socket; tries++) {
				assert.ok(tries < 50, "each upgrade goes to the node of its session");
				const next = await upgrades(await open(t, client, way, { claims: { user } }));
				if ((await through(next)) === next.node) next.disconnect();
				else socket = next;
			}
			for (const n of [1, 1000, 300_000]) same(await ask(socket, "echo", bytes(n)), [bytes(n)]);
			for (const node of nodes) {
				await until(`${node} knows of no other`, async () => (await server.pushFrom(node, { user, event: "x" }, 1)).targets === 1);
				const asked = once(socket, "ask");
				const pushed = server.pushFrom(node, { user, event: "ask", ack: "biz" }, node);
				const [data, answer] = await asked;
				answer(data);
				const { acked, deliveries } = await pushed;
				assert.deepEqual([acked, deliveries[0].reply], [1, node]);
			}
		});
	}
}

/** The socket, once it is a WebSocket. */
const upgrades = async (socket) => (await upgraded(socket)) && socket;

/** Each client over each transport, as users of their own, connected. */
async function everybody(t, cluster) {
	const all = tried.flatMap((client) => ways.map((way) => ({ client, way, user: fresh("user"), who: called(client, way) })));
	await Promise.all(
		all.map(async (one) => {
			one.socket = start(t, one.client, one.way, { from: cluster, claims: { user: one.user } });
			one.gone = new Inbox(one.socket, "disconnect");
			one.welcome = new Inbox(one.socket, "welcome");
			one.socket.on("welcome", ({ node }) => (one.socket.node = node));
			one.socket.on("there?", (_, answer) => answer());
			await one.welcome.next();
			if (one.way.length > 1) await upgraded(one.socket);
		}),
	);
	return all;
}

/** Waits until each of a list is reached from each node. */
const reached = async (cluster, all, from) => {
	for (const node of from) {
		await Promise.all(
			all.map(({ user, who }) =>
				until(`${who} is reached from ${node}`, async () => {
					const { acked, targets } = await cluster.pushFrom(node, { user, event: "there?", ack: "biz", wait: "1s" }, 1);
					return acked === 1 && targets === 1;
				}),
			),
		);
	}
};

alone("an unknown session is a 400 of whichever node is asked, and only one that could be there is asked for elsewhere", async (t) => {
	const cluster = await startCluster("-quiet");
	t.after(() => cluster.stop("SIGKILL"));
	const get = async (query) => {
		const answer = await fetch(`${cluster.url}/socket.io/?${new URLSearchParams({ EIO: "4", transport: "polling", ...query })}`, { signal: AbortSignal.timeout(WAIT) });
		return { status: answer.status, text: await answer.text() };
	};
	const unknown = () => Promise.all(nodes.map(async (node) => (await cluster.node(node).stats()).refused.unknown_sid));
	/** Asks for a session as often as there are nodes; tells who said no, and how often. */
	const refusals = async (sid) => {
		const before = await unknown();
		for (const _ of nodes) {
			const { status, text } = await get({ sid });
			assert.equal(status, 400);
			assert.deepEqual(JSON.parse(text), { code: 1, message: "Session ID unknown" });
		}
		return (await unknown()).map((n, i) => n - before[i]);
	};

	const opened = await get({});
	assert.equal(opened.status, 200);
	const { sid } = JSON.parse(opened.text.slice(1));
	const forged = sid.slice(0, -2) + (sid.at(-2) === "A" ? "B" : "A") + sid.at(-1);
	for (const bad of ["", "x", "0".repeat(sid.length), forged, sid + "A", sid.slice(1), "../" + sid]) {
		if (bad !== "") assert.deepEqual(await refusals(bad), [1, 1, 1], bad);
	}
	const end = await fetch(`${cluster.url}/socket.io/?${new URLSearchParams({ EIO: "4", transport: "polling", sid })}`, { method: "POST", body: "1", headers: { "Content-Type": "text/plain" } });
	assert.equal(end.status, 200);
	// Now it is one that a node made and has no more: that node is who knows.
	assert.deepEqual((await refusals(sid)).toSorted(), [0, 0, 3]);
	for (const node of nodes) assert.equal((await cluster.node(node).stats()).cluster.relay_failures, 0);
});

alone("whose node is shut down comes back on another, and who is on another and polls does not notice", async (t) => {
	const cluster = await startCluster("-quiet", "-heartbeat", "2s");
	t.after(() => cluster.stop("SIGKILL"));
	const all = [...(await everybody(t, cluster)), ...(await everybody(t, cluster)), ...(await everybody(t, cluster))];
	await reached(cluster, all, nodes);
	const out = all[0].socket.node;
	const moved = all.filter(({ socket }) => socket.node === out);
	const stay = all.filter(({ socket, way }) => socket.node !== out && way[way.length - 1] === "polling");
	assert.ok(moved.length > 0 && stay.length > 1);
	let over = false;
	const [talkers, listeners] = [stay.filter((_, i) => i % 2 === 0), stay.filter((_, i) => i % 2 === 1)];
	for (const { socket, who } of listeners) {
		let turn = 0;
		await until(`a poll of ${who} is held on ${out}`, async () => {
			// An echo may take three requests, which come to the same nodes each time.
			for (let i = turn++ % 3; i > 0; i--) await (await fetch(`${cluster.url}/socket.io/?EIO=4&transport=none`)).text();
			await ask(socket, "echo", 1);
			await new Promise((resolve) => setTimeout(resolve, 30)); // for the next poll to get there
			return (await cluster.node(out).ask("GET", "/held", { tab: socket.tab })) === 1;
		});
	}
	const talking = talkers.map(async ({ socket, gone }) => {
		const lost = new Promise((resolve) => socket.once("disconnect", resolve));
		for (let n = 0; !over && gone.all.length === 0; n++) await Promise.race([ask(socket, "echo", n), lost]);
	});
	await cluster.ask("POST", "/down", { node: out, how: "drain" });
	over = true;
	await Promise.all(talking);
	for (const { gone, welcome, who } of moved) {
		assert.match((await gone.next())[0], /^transport (close|error)$/, who);
		assert.notEqual((await welcome.next())[0].node, out, who);
	}
	await reached(cluster, all, others(out));
	const noticed = stay.filter(({ gone }) => gone.all.length > 0).map(({ who, gone: { all: [[why, more]] } }) => `${who}: ${why} ${more?.description ?? ""}`);
	assert.deepEqual(noticed, [], `${noticed.length} of ${stay.length} that poll on the nodes that stayed were disconnected`);
});

alone("whose node is killed comes back on another, also when it is up again", async (t) => {
	const cluster = await startCluster("-quiet");
	t.after(() => cluster.stop("SIGKILL"));
	const all = await everybody(t, cluster);
	await reached(cluster, all, nodes);
	for (const node of nodes) {
		const moved = all.filter(({ socket }) => socket.node === node);
		await cluster.ask("POST", "/down", { node, how: "kill" });
		for (const { socket, who } of moved) await until(`${who} is back`, () => socket.connected && socket.node !== node);
		await reached(cluster, all, others(node));
		await cluster.ask("POST", "/up", { node });
		await reached(cluster, all, nodes);
	}
});

alone("a node that was killed and is up again is one node, also to a node that starts after it", async (t) => {
	const cluster = await startCluster("-quiet");
	t.after(() => cluster.stop("SIGKILL"));
	for (const node of ["b", "a"]) {
		await cluster.ask("POST", "/down", { node, how: "kill" });
		const began = Date.now();
		await cluster.ask("POST", "/up", { node });
		const took = Date.now() - began;
		assert.ok(took < 4000, `after ${took} ms only ${node} was ready: it took the run that was killed for a node`);
	}
	const socket = start(t, tried.at(-1), ["websocket"], { from: cluster });
	socket.on("there?", (answer) => answer());
	await connected(socket);
	for (const node of nodes) {
		const { acked, failed, deliveries } = await cluster.pushFrom(node, { all: "", event: "there?", ack: "biz", as: "args" }, []);
		assert.deepEqual([acked, failed], [1, 0], `from ${node}: ${JSON.stringify(deliveries)}`);
	}
});

alone("what was acked was seen, nothing comes twice, and no connection has a gap, whatever is done to the nodes", async (t) => {
	const cluster = await startCluster("-quiet", "-heartbeat", "2s");
	t.after(() => cluster.stop("SIGKILL"));
	const up = new Set(nodes);
	const all = tried.flatMap((client) => ways.map((way) => ({ client, way, user: fresh("user"), who: called(client, way), seen: [], acked: [], runs: [] })));
	for (const one of all) {
		one.socket = start(t, one.client, one.way, { from: cluster, claims: { user: one.user } });
		one.socket.on("connect", () => {
			one.runs.push([]);
			one.socket.emit("trickle", null);
		});
		one.socket.on("n", (n) => one.runs.at(-1).push(n));
		one.socket.on("note", (n, answer) => {
			one.seen.push(n);
			answer();
		});
	}
	let over = false;
	let number = 0;
	const pushing = all.map(async (one) => {
		while (!over) {
			const n = number++;
			const from = [...up][n % up.size];
			const receipt = await cluster.pushFrom(from, { user: one.user, event: "note", ack: "biz", wait: "1s" }, n).catch(() => ({})); // the node ended meanwhile
			if (receipt.acked) one.acked.push(n);
			await sleep(20);
		}
	});
	const ackedMore = (after) =>
		Promise.all(all.map((one) => {
			const n = one.acked.length;
			return until(`${one.who} acks after ${after}`, () => one.acked.length > n + 3);
		}));
	await ackedMore("the beginning");
	for (const [how, node] of [["kill", "a"], ["drain", "b"], ["surprise", "c"], ["kill", "b"]]) {
		up.delete(node);
		await cluster.ask("POST", "/down", { node, how });
		await ackedMore(`${how} ${node}`);
		await cluster.ask("POST", "/up", { node });
		up.add(node);
		await ackedMore(`${node} was up again`);
	}
	over = true;
	await Promise.all(pushing);
	for (const { socket } of all) socket.disconnect();
	for (const node of nodes) {
		await until(`nothing of them is left on ${node}`, async () => {
			const { sockets, conns, pending, flights, queued_bytes, cluster: c } = await cluster.node(node).stats();
			return sockets + conns + pending + flights + queued_bytes + c.relayed === 0;
		});
		const { malformed, diverged } = (await cluster.node(node).stats()).cluster;
		assert.deepEqual({ malformed, diverged }, { malformed: 0, diverged: 0 }, node);
	}
	for (const { who, seen, acked, runs } of all) {
		assert.equal(new Set(seen).size, seen.length, `${who} saw something twice`);
		const had = new Set(seen);
		assert.deepEqual(acked.filter((n) => !had.has(n)), [], `${who} acked what it did not see`);
		assert.ok(runs.length > 1 && runs.some((run) => run.length > 100), `${who} had connections with ${runs.map((run) => run.length)} events`);
		for (const [i, run] of runs.entries()) {
			const wrong = run.findIndex((n, k) => n !== k);
			assert.equal(wrong, -1, `${who}, connection ${i + 1} of ${runs.length}: event ${wrong} of ${run.length} is number ${run[wrong]}`);
		}
	}
});
