import "./tokens.css";
import { mount } from "svelte";
import { registerServiceWorker } from "../offline/register";
import App from "./App.svelte";
import { watchRequests } from "./state/privacy.svelte";

watchRequests();
registerServiceWorker();
mount(App, { target: document.getElementById("app")! });
