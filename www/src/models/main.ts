import "../tokens.css";
import { mount } from "svelte";
import { registerServiceWorker } from "../../offline/register";
import Models from "./Models.svelte";

registerServiceWorker();
mount(Models, { target: document.getElementById("app")! });
