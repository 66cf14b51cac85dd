// What every server of this benchmark obeys (runServer in server_linux.go),
// for the peers that run on Node.

import { createServer } from "node:http";
import { createInterface } from "node:readline";

const quiet = 250_000n; // ns
const now = () => process.hrtime.bigint();
const eventLoop = () => new Promise(setImmediate);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// The data of an event that makes it 128 bytes on the wire.
export const dataFor = (empty) => "x".repeat(128 - empty.length);

// An http.Server that obeys; server has conns(), broadcast(), push(user, data)
// and the data of a broadcast.
export function serve(http, server) {
	http.listen(0, "127.0.0.1", 65535, () => console.log(http.address().port));
	const lines = createInterface({ input: process.stdin });
	let turn = Promise.resolve();
	lines.on("line", (line) => {
		turn = turn.then(() => obey(server, line.split(" "))).then(
			(answer) => console.log(answer),
			(error) => console.log("error", JSON.stringify(String(error))),
		);
	});
	lines.on("close", () => process.exit(0));
}

export const newHTTP = () => createServer((request, response) => response.writeHead(426).end());

async function obey(server, [command, ...args]) {
	switch (command) {
	case "conns":
		return server.conns();
	case "cpu": {
		const used = process.cpuUsage();
		return (used.user + used.system) * 1000;
	}
	case "memory": {
		globalThis.gc();
		await eventLoop();
		globalThis.gc();
		const used = process.memoryUsage();
		return `${used.rss} ${used.heapUsed + used.external} 0 0`;
	}
	case "broadcast": {
		const began = now();
		for (let i = 0; i < Number(args[0]); i++) server.broadcast();
		return String(began);
	}
	case "push":
		await pushes(server, args[0], Number(args[1]), Number(args[2]));
		return 0;
	}
	throw new Error("unknown command");
}

async function pushes(server, how, n, users) {
	const order = Array.from({ length: users }, (_, i) => i);
	for (let i = 0; i < n; i++) {
		const j = i + Math.floor(Math.random() * (users - i));
		[order[i], order[j]] = [order[j], order[i]];
		const user = "u" + order[i];
		if (how === "flat") {
			server.push(user, server.data);
			if (i % 100 === 99) await eventLoop();
			continue;
		}
		const stamp = now();
		server.push(user, "@" + String(stamp).padStart(19, "0"));
		if (how === "rest") {
			await sleep(1); // there is no shorter timer
			continue;
		}
		while (now() - stamp < quiet);
		await eventLoop(); // a request is answered
	}
}
